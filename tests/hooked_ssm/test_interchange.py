"""Interchange interventions: every number against a run with one hook on one document."""

import inspect
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from hooked_ssm import HookedSSM, zoo
from hooked_ssm.interchange import Interchange, interchange

VOCAB, DOCS, LENGTH = 11, 5, 8
CORRUPTED_AT = torch.tensor([1, 2, 3, 1, 2])
ANSWER_POS = torch.tensor([5, 6, 7, 6, 5])  # a different one for every kind of document
ORDER = 1e-12  # for what is equal but for the order of sums, in float64
CELL = {"rtol": 0, "atol": ORDER}
SIZES = {"d_vocab": VOCAB, "n_ctx": 16, "dtype": torch.float64, "device": "cpu", "seed": 0}

COMMON = ["hook_resid_pre", "hook_mixer_out", "hook_z"]
RECURRENT = [*COMMON, "hook_ssm_state"]


@dataclass(frozen=True)
class Case:
    model: Any
    hooks: list[str]
    tolerance: float = ORDER


def moved(model: Any) -> Any:
    """The model with weights moved well away from where they start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.4 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model.eval()


def ours(cfg: Any, *by_layer: list[str]) -> Case:
    hooks = [f"blocks.{layer}.{hook}" for layer, hooks in enumerate(by_layer) for hook in hooks]
    return Case(moved(HookedSSM(cfg)), ["hook_embed", *hooks, "ln_final.hook_normalized"])


class Toy(HookedRootModule):
    """A causal model with hooks of TransformerLens's own, that cannot start late or choose its logits."""

    def __init__(self):
        super().__init__()
        self.embed, self.hook_embed = nn.Embedding(VOCAB, 6), HookPoint()
        self.mix, self.hook_mix = nn.Linear(6, 6), HookPoint()
        self.hook_total = HookPoint()
        self.unembed = nn.Linear(6, VOCAB)
        self.double()
        self.setup()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.hook_embed(self.embed(tokens))
        x = x + self.hook_mix(torch.tanh(self.mix(x)).cumsum(1))
        return self.unembed(torch.tanh(self.hook_total(x)))


def gpt2_bridge() -> Any:
    cfg = GPT2Config(
        vocab_size=VOCAB, n_positions=16, n_embd=8, n_layer=2, n_head=2, attn_implementation="eager"
    )
    return build_bridge_from_module(moved(GPT2LMHeadModel(cfg).double()), "GPT2LMHeadModel", hf_config=cfg)


def mamba_bridge() -> Any:
    cfg = MambaConfig(
        vocab_size=VOCAB, hidden_size=8, num_hidden_layers=2, state_size=3, use_cache=False, time_step_rank=1
    )
    return build_bridge_from_module(moved(MambaForCausalLM(cfg).double()), "MambaForCausalLM", hf_config=cfg)


@cache
def case(name: str) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(name)


def build(name: str) -> Case:
    match name:
        case "attention":
            return ours(zoo.attention(d_model=8, n_heads=2, **SIZES), COMMON, [*COMMON, "hook_mlp_out"])
        case "mamba":
            hooks = [*RECURRENT, "hook_conv"]
            return ours(zoo.mamba(d_model=8, d_state=3, n_layers=3, **SIZES), hooks, [], hooks)
        case "mamba without convolution":
            return ours(zoo.mamba(d_model=8, d_state=3, d_conv=0, **SIZES), RECURRENT, RECURRENT)
        case "hybrid":
            return ours(
                zoo.hybrid(d_model=8, n_heads=2, d_conv=3, **SIZES), [*RECURRENT, "hook_conv"], COMMON
            )
        case "a HookedRootModule":
            return Case(moved(Toy()), ["hook_embed", "hook_mix", "hook_total"])
        case "a GPT-2 bridge":
            names = ["hook_resid_pre", "hook_attn_out", "attn.hook_z"]
            return Case(gpt2_bridge(), [f"blocks.{layer}.{n}" for layer in (0, 1) for n in names])
        case "a Mamba bridge":
            names = ["hook_resid_pre", "mixer.hook_out"]
            # transformers' scan is in single precision, whatever the weights are.
            return Case(mamba_bridge(), [f"blocks.{layer}.{n}" for layer in (0, 1) for n in names], 1e-6)
    raise KeyError(name)


OURS = ["attention", "mamba", "mamba without convolution", "hybrid"]
OTHERS = ["a HookedRootModule", "a GPT-2 bridge", "a Mamba bridge"]


def documents() -> SimpleNamespace:
    """Clean and corrupted documents, which differ in one token each, and positions to intervene on."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(VOCAB, (DOCS, LENGTH), generator=generator)
    corrupted, rows = clean.clone(), torch.arange(DOCS)
    corrupted[rows, CORRUPTED_AT] = (clean[rows, CORRUPTED_AT] + 4) % VOCAB
    several = torch.rand(DOCS, LENGTH, generator=generator) < 0.4
    positions = {
        "corrupted": CORRUPTED_AT,
        "after": CORRUPTED_AT + 1,
        "before": CORRUPTED_AT - 1,
        "readout": ANSWER_POS,
        "all": torch.ones(DOCS, LENGTH, dtype=torch.bool),
        "several": several,
        "none": torch.zeros(DOCS, LENGTH, dtype=torch.bool),
    }
    answer = torch.randint(VOCAB, (DOCS,), generator=generator)
    return SimpleNamespace(clean=clean, corrupted=corrupted, answer=answer, positions=positions)


def measure(model: Any, hooks: list[str], function: Any = interchange, **changes: Any) -> Interchange:
    docs = documents()
    arguments: dict[str, Any] = {
        "clean": docs.clean,
        "corrupted": docs.corrupted,
        "answer": docs.answer,
        "answer_pos": ANSWER_POS,
        "hooks": hooks,
        "positions": docs.positions,
    }
    arguments |= changes
    return function(model, arguments.pop("clean"), arguments.pop("corrupted"), **arguments)


@cache
def measured(name: str) -> Interchange:
    return measure(case(name).model, case(name).hooks)


@torch.no_grad()
def directly(model: Any, tokens: Tensor, hooks: list[Any], doc: int) -> tuple[float, float]:
    """Probability and logit of one document's answer: the whole document is run, and every logit computed."""
    at_readout = model.run_with_hooks(tokens[doc : doc + 1], fwd_hooks=hooks)[0, ANSWER_POS[doc]]
    answer = int(documents().answer[doc])
    return float(at_readout.softmax(-1)[answer]), float(at_readout[answer])


def keep_in(kept: dict[str, Tensor], name: str) -> Any:
    def keep(activation: Tensor, hook: Any) -> None:
        kept[name] = activation.clone()

    return name, keep


def replace_by(source: Tensor, name: str, where: Tensor) -> Any:
    def replace(activation: Tensor, hook: Any) -> Tensor:
        activation = activation.clone()
        for position in where.nonzero()[:, 0]:
            activation[:, position] = source[:, position]
        return activation

    return name, replace


@pytest.mark.parametrize("name", [*OURS, *OTHERS])
def test_every_cell_is_a_run_with_one_hook_on_one_document(name):
    model, hooks, result = case(name).model, case(name).hooks, measured(name)
    docs, tolerance = documents(), case(name).tolerance
    assert result.hooks == hooks and result.positions == list(docs.positions)
    for doc in range(DOCS):
        kept: dict[str, Tensor] = {}
        p, logit = directly(model, docs.clean, [keep_in(kept, hook) for hook in hooks], doc)
        assert float(result.p_clean[doc]) == pytest.approx(p, abs=tolerance)
        assert float(result.logit_clean[doc]) == pytest.approx(logit, abs=tolerance)
        p, logit = directly(model, docs.corrupted, [], doc)
        assert float(result.p_corrupted[doc]) == pytest.approx(p, abs=tolerance)
        assert float(result.logit_corrupted[doc]) == pytest.approx(logit, abs=tolerance)
        for h, hook in enumerate(hooks):
            for w, where in enumerate(docs.positions.values()):
                mask = where[doc] if where.dtype == torch.bool else torch.arange(LENGTH) == where[doc]
                p, logit = directly(model, docs.corrupted, [replace_by(kept[hook], hook, mask)], doc)
                assert float(result.p_patched[h, w, doc]) == pytest.approx(p, abs=tolerance), (hook, w, doc)
                assert float(result.logit_patched[h, w, doc]) == pytest.approx(logit, abs=tolerance)
    assert (result.p_clean - result.p_corrupted).abs().max() > 1e-3, "the corruption must matter"
    moved_by = result.prob_diff.abs().amax(-1)
    assert (moved_by[:, result.positions.index("all")] > 1e-4).all(), "every hook must matter"


@pytest.mark.parametrize("name", OURS)
def test_the_first_blocks_input_restores_at_the_corrupted_position_and_nowhere_else(name):
    result = measured(name)
    row = result.hooks.index("blocks.0.hook_resid_pre")
    restored = dict(zip(result.positions, result.p_patched[row], strict=True))
    torch.testing.assert_close(restored["corrupted"], result.p_clean, **CELL)
    torch.testing.assert_close(restored["all"], result.p_clean, **CELL)
    for nothing in ("before", "after", "readout", "none"):
        torch.testing.assert_close(restored[nothing], result.p_corrupted, **CELL)


@pytest.mark.parametrize("name", [*OURS, *OTHERS])
def test_all_positions_of_a_residual_stream_restore_everything(name):
    result = measured(name)
    streams = [
        h for h, hook in enumerate(result.hooks) if hook.endswith(("resid_pre", "hook_embed", "hook_total"))
    ]
    restored = result.p_patched[streams, result.positions.index("all")]
    torch.testing.assert_close(
        restored, result.p_clean.expand_as(restored), rtol=0, atol=case(name).tolerance
    )


@pytest.mark.parametrize("name", OURS)
def test_positions_after_the_readout_do_nothing(name):
    positions = {"next": ANSWER_POS.clamp(max=LENGTH - 2) + 1, "last": torch.full((DOCS,), LENGTH - 1)}
    later = ANSWER_POS < LENGTH - 1
    result = measure(case(name).model, case(name).hooks, positions=positions)
    nothing = result.p_corrupted[later].expand_as(result.p_patched[..., later])
    torch.testing.assert_close(result.p_patched[..., later], nothing, **CELL)


@pytest.mark.parametrize("name", ["hybrid", "a HookedRootModule"])
def test_numbers_do_not_depend_on_the_batch_size(name):
    whole = measured(name)
    for batch_size in (1, 2, DOCS, 100):
        parts = measure(case(name).model, case(name).hooks, batch_size=batch_size)
        for field in (
            "p_clean",
            "p_corrupted",
            "p_patched",
            "logit_clean",
            "logit_corrupted",
            "logit_patched",
        ):
            torch.testing.assert_close(getattr(parts, field), getattr(whole, field), **CELL)


def test_a_mask_of_one_position_is_that_position():
    name = "mamba"
    mask = torch.arange(LENGTH) == CORRUPTED_AT[:, None]
    result = measure(case(name).model, case(name).hooks, positions={"index": CORRUPTED_AT, "mask": mask})
    torch.testing.assert_close(result.p_patched[:, 0], result.p_patched[:, 1], **CELL)


def test_one_hook_is_patched_at_a_time_and_none_is_left():
    name = "hybrid"
    for hook in (case(name).hooks[0], case(name).hooks[-1]):
        alone = measure(case(name).model, [hook])
        together = measured(name).p_patched[case(name).hooks.index(hook)]
        torch.testing.assert_close(alone.p_patched[0], together, **CELL)
    assert not case(name).model.list_hooks()
    assert all(p.requires_grad for p in case(name).model.parameters())


# What is computed from the cells --------------------------------------------------------------------------


def random_result(docs: int = 40, seed: int = 0) -> Interchange:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return Interchange(
        hooks=["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"],
        positions=["key", "value", "query"],
        p_clean=0.6 + 0.4 * rand(docs),
        p_corrupted=0.3 * rand(docs),
        p_patched=rand(2, 3, docs),
        logit_clean=rand(docs),
        logit_corrupted=rand(docs),
        logit_patched=rand(2, 3, docs),
    )


def test_attrib_is_a_ratio_of_means():
    result = random_result()
    clean, corrupted, patched = (t.numpy() for t in (result.p_clean, result.p_corrupted, result.p_patched))
    of_means = (patched.mean(-1) - corrupted.mean()) / (clean.mean() - corrupted.mean())
    np.testing.assert_allclose(result.attrib().numpy(), of_means, rtol=1e-12)
    of_ratios = ((patched - corrupted) / (clean - corrupted)).mean(-1)
    assert abs(of_ratios - of_means).max() > 1e-3, "the two must be told apart"
    assert result.gap == pytest.approx(clean.mean() - corrupted.mean(), rel=1e-12)
    np.testing.assert_allclose(result.prob_diff.numpy(), patched - corrupted, rtol=1e-12)


def test_the_interval_is_that_of_a_naive_bootstrap():
    result, n, resamples = random_result(docs=7), 7, 50
    draws = np.random.default_rng(5).multinomial(n, [1 / n] * n, size=resamples)
    low, high = result.interval(confidence=0.8, resamples=resamples, seed=5)
    for hook in range(2):
        for position in range(3):
            attribs = []
            for counts in draws:
                chosen = [doc for doc in range(n) for _ in range(counts[doc])]
                restored = sum(
                    float(result.p_patched[hook, position, d] - result.p_corrupted[d]) for d in chosen
                )
                attribs.append(
                    restored / sum(float(result.p_clean[d] - result.p_corrupted[d]) for d in chosen)
                )
            expected = np.quantile(attribs, [0.1, 0.9])
            np.testing.assert_allclose([low[hook, position], high[hook, position]], expected, rtol=1e-12)


def test_the_interval_holds_attrib_repeats_and_shrinks_with_documents():
    few, many = random_result(docs=20), random_result(docs=2000)
    for result in (few, many):
        low, high = result.interval()
        assert (low < result.attrib()).all() and (result.attrib() < high).all()
        assert all(torch.equal(*pair) for pair in zip((low, high), result.interval(), strict=True))
        assert not torch.equal(low, result.interval(seed=1)[0])
        narrow_low, narrow_high = result.interval(confidence=0.5)
        assert (low < narrow_low).all() and (narrow_high < high).all()
    widths = [high - low for low, high in (few.interval(), many.interval())]
    # A hundred times the documents is a tenth of the width; a fifth to a twentieth allows for chance.
    assert (widths[0] / widths[1] > 5).all() and (widths[0] / widths[1] < 20).all()


def test_the_table_has_a_row_a_hook_and_position():
    result = random_result()
    table, (low, high) = result.table(), result.interval()
    assert list(table.columns) == ["hook", "position", "attrib", "low", "high", "restored", "prob_diff"]
    assert len(table) == 6
    for row, found in enumerate(table.to_dict("records")):
        h, p = divmod(row, 3)
        expected = {
            "attrib": result.attrib()[h, p],
            "low": low[h, p],
            "high": high[h, p],
            "restored": result.p_patched[h, p].mean(),
            "prob_diff": result.prob_diff[h, p].mean(),
        }
        assert found["hook"] == result.hooks[h] and found["position"] == result.positions[p]
        assert {name: found[name] for name in expected} == {name: float(x) for name, x in expected.items()}
    assert all(pd.api.types.is_float_dtype(table[name]) for name in table.columns[2:])


def test_where_nothing_was_lost_attrib_is_undefined():
    docs = documents()
    result = measure(case("hybrid").model, ["blocks.1.hook_resid_pre"], corrupted=docs.clean)
    assert result.gap == 0 and not np.isfinite(result.table().attrib).any()


# What is refused ------------------------------------------------------------------------------------------

# Without the checks of annotated shapes that only the test suite asks for.
unchecked = inspect.unwrap(interchange)
LONGER = torch.zeros(DOCS, LENGTH + 1, dtype=torch.long)
TOO_FEW = torch.zeros(DOCS - 1, dtype=torch.long)
TOO_SHORT = torch.ones(DOCS, LENGTH - 1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corrupted": LONGER}, r"one shape, got \[5, 8\] and \[5, 9\]"),
        ({"positions": {"key": torch.full((DOCS,), LENGTH)}}, r"'key' must lie in 0..7, got 8..8"),
        ({"positions": {"key": torch.tensor([0, 1, -1, 2, 3])}}, r"'key' must lie in 0..7, got -1..3"),
        ({"positions": {"key": TOO_FEW}}, r"'key' must be one a document, \[5\], got \[4\]"),
        ({"positions": {"rest": TOO_SHORT}}, r"'rest' must have the documents' shape \[5, 8\], got \[5, 7\]"),
        ({"positions": {}}, "got 1 hooks, 0 positions"),
        ({"hooks": []}, "got 0 hooks"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"answer_pos": torch.full((DOCS,), LENGTH)}, "'answer_pos' must lie in 0..7, got 8..8"),
        ({"answer": torch.zeros(2, dtype=torch.long)}, r"answer must be one a document, \[5\], got \[2\]"),
        ({"answer": torch.full((DOCS,), VOCAB)}, "answers must lie in 0..10, got 11..11"),
        ({"hooks": ["blocks.1.hook_pattern"]}, "'blocks.1.hook_pattern' has no position axis in second"),
        ({"hooks": ["blocks.0.hook_result"]}, r"would not fire.*set_use_attn_result"),
    ],
)
def test_bad_input_is_refused_with_what_was_wanted_and_what_came(changes, message):
    arguments = {"hooks": ["blocks.1.hook_resid_pre"], "function": unchecked} | changes
    with pytest.raises(ValueError, match=message):
        measure(case("hybrid").model, **arguments)
    assert not case("hybrid").model.list_hooks()


@pytest.mark.parametrize(
    ("name", "hook", "near"),
    [
        ("hybrid", "blocks.0.hook_residpre", "blocks.0.hook_resid_pre"),
        ("hybrid", "blocks.2.hook_resid_pre", "blocks.0.hook_resid_pre"),
        ("hybrid", "blocks.first.hook_resid_pre", "blocks.0.hook_resid_pre"),
        ("a HookedRootModule", "hook_embedding", "hook_embed"),
        ("a GPT-2 bridge", "blocks.1.hook_residpre", "blocks.1.hook_resid_pre"),
    ],
)
def test_an_unknown_hook_is_refused_with_the_nearest_names(name, hook, near):
    with pytest.raises(KeyError, match=f"no hook named '{hook}'; did you mean .*'{near}'"):
        measure(case(name).model, [hook])


def test_a_name_unlike_any_other_is_refused_with_where_to_look():
    with pytest.raises(KeyError, match="no hook named 'zzzz'; model.hook_dict has all"):
        measure(case("hybrid").model, ["zzzz"])


def test_a_hook_that_does_not_fire_is_refused():
    """TransformerLens's Mamba bridge has a hook at its convolution, which its fast path does not run."""
    with pytest.raises(ValueError, match="'blocks.0.mixer.conv1d.hook_out' did not fire"):
        measure(case("a Mamba bridge").model, ["blocks.0.hook_resid_pre", "blocks.0.mixer.conv1d.hook_out"])


@pytest.mark.parametrize("options", [{"confidence": 1.0}, {"confidence": 0.0}, {"resamples": 0}])
def test_an_impossible_interval_is_refused(options):
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\) and resamples at least 1, got"):
        random_result().interval(**options)
