"""Hooks that do not lie between the inputs and the metric are refused by every function that patches them."""

import pytest
import torch
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformer_lens.patching import layer_pos_patch_setter

from hooked_ssm import patching
from hooked_ssm.attribution import edge_attribution, gradient_attribution, integrated_gradients
from hooked_ssm.interchange import interchange

from ..models import scattered
from .case import CLOSE, DOCS, LENGTH, case_of, hooks_outside

OUTSIDE = "does not lie between the inputs and the metric"
UNREAD = "the logits are the same whatever it is set to"
CONSTANT = "it is the same whatever the tokens"


@pytest.mark.parametrize("kind", ["attention", "mamba", "h3", "base_conv"])  # test_sweep has all
def test_of_every_architecture_these_hooks_are_refused_and_no_others(kind):
    """Though clean and corrupted documents are the same, so that no hook's activation is changed."""
    case = case_of(kind)
    refused = set()
    for name in case.model.hook_table().query("unavailable == ''").name:
        try:
            patching.patch_sweep(case.model, case.clean, case.cache, case.metric, name, ())
        except ValueError as error:
            assert OUTSIDE in str(error) and repr(name) in str(error)
            assert (UNREAD in str(error)) == name.endswith("hook_mlp_in")
            refused.add(name)
    assert refused == hooks_outside(case.model)


class Dangling(HookedRootModule):
    """One block, and hooks that fire beside it, in it and after it. The tokens are small integers."""

    def __init__(self):
        super().__init__()
        self.embed, self.unembed = nn.Embedding(11, 6), nn.Linear(6, 11)
        self.blocks = nn.ModuleList([nn.Module()])
        for name in ("hook_resid_pre", "hook_norm", "hook_swallowed", "hook_bias", "hook_shift"):
            setattr(self.blocks[0], name, HookPoint())
        self.hook_silent = HookPoint()
        self.double().eval()
        self.cfg = type("cfg", (), {"n_layers": 1, "n_heads": 1, "d_model": 6, "d_vocab": 11})()
        self.setup()

    def forward(self, tokens: Tensor) -> Tensor:
        block = self.blocks[0]
        x = block.hook_resid_pre(self.embed(tokens))
        block.hook_norm(x.norm(dim=-1, keepdim=True))
        hidden = block.hook_swallowed(x * 2)
        x = torch.where(x.isfinite(), x, hidden)
        x = x + block.hook_bias(torch.ones_like(x))
        shift = block.hook_shift(tokens.cumsum(1) % 3)
        return self.unembed(x.cumsum(1).tanh() + shift.unsqueeze(-1))


@pytest.fixture(scope="module")
def dangling():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Dangling()
    case = case_of("mamba")
    _, cache = model.run_with_cache(case.clean)
    return lambda name, **options: patching.patch_sweep(
        model, case.corrupted, cache, lambda logits: logits[:, -1, 3].exp().mean(), name, **options
    )


@pytest.mark.parametrize(
    ("name", "why"), [("norm", UNREAD), ("swallowed", UNREAD), ("bias", CONSTANT)], ids=lambda x: x[:9]
)
def test_hooks_of_other_models_too_with_the_nearest_right_ones(dangling, name, why):
    message = f"'blocks.0.hook_{name}' {OUTSIDE}: .*{why}.*'blocks.0.hook_(resid_pre|shift)'"
    with pytest.raises(ValueError, match=message):
        dangling(name)


def test_integers_may_be_patched(dangling):
    assert dangling("shift").std() > 1e-3


def test_a_hook_that_does_not_fire_is_answered_with_those_that_do(dangling):
    with pytest.raises(KeyError, match="the clean cache does not hold 'hook_silent'"):
        dangling("hook_silent", index_axis_names=("pos",))
    model, cache = Dangling(), {"hook_silent": torch.zeros(DOCS, LENGTH, 6, dtype=torch.float64)}
    given = model, case_of("mamba").corrupted, cache, lambda logits: logits.mean()
    with pytest.raises(ValueError, match=r"'hook_silent' did not fire.* that do: .*'blocks.0.hook_shift'"):
        patching.patch_sweep(*given, "hook_silent", ("pos",))


def test_documents_may_agree_at_a_hook_by_chance():
    case = case_of("mamba")
    same = patching.get_act_patch_resid_pre(case.model, case.clean, case.cache, case.metric)
    with torch.no_grad():
        wanted = case.metric(case.model(case.clean))
    torch.testing.assert_close(same, wanted.expand_as(same), **CLOSE)


def test_filters_are_patched_from_any_other_cache():
    case = case_of("hyena")
    name = "blocks.1.mixer.hook_filter"
    with pytest.raises(ValueError, match="Put other values, such as zeros, into the cache"):
        patching.get_act_patch_filter(case.model, case.corrupted, case.cache, case.metric)
    other = scattered("hyena", seed=5).run_with_cache(case.clean)[1]
    swept = patching.get_act_patch_filter(case.model, case.corrupted, other, case.metric)

    def replace(filters, hook):
        filters[:, 2] = other[name][:, 2]

    assert float(swept[1, 2]) == pytest.approx(case.measure((name, replace)), abs=1e-10)


@pytest.mark.parametrize("metric", [lambda logits: 3.0, lambda logits: torch.ones(len(logits)).mean()])
@pytest.mark.parametrize("kind", ["mamba", "a bridge"])
def test_a_metric_reads_the_logits(kind, metric):
    case = case_of(kind)
    given = case.model, case.corrupted, case.cache
    for name, sweep in {
        "sweep": lambda: patching.get_act_patch_resid_pre(*given, {"right": case.metric, "wrong": metric}),
        "setter": lambda: patching.generic_activation_patch(
            *given, metric, lambda activation, index, clean: clean, "resid_pre", ("layer",)
        ),
    }.items():
        with pytest.raises(ValueError, match="'(wrong|metric)' does not read the logits"):
            sweep()
            pytest.fail(name)


DEAD, ALIVE = "blocks.0.hook_mlp_in", "blocks.0.hook_resid_mid"
case = case_of("mamba")
PATCHING = case.model, case.corrupted, case.cache, case.metric
ATTRIBUTION = case.model, case.clean, case.corrupted, case.per_document
EVERYWHERE = {"all": torch.ones(DOCS, LENGTH, dtype=torch.bool)}
FUNCTIONS = {
    "a sweep": lambda name: patching.patch_sweep(*PATCHING, name, ("pos",)),
    "a setter of TransformerLens": lambda name: patching.generic_activation_patch(
        *PATCHING, layer_pos_patch_setter, name.split("hook_")[1], ("layer", "pos")
    ),
    "a setter": lambda name: patching.generic_activation_patch(
        *PATCHING, lambda activation, index, clean: clean + 1, name.split("hook_")[1], ("layer",)
    ),
    "interchange": lambda name: interchange(
        *(case.model, case.clean, case.corrupted),
        answer=torch.arange(DOCS),
        answer_pos=torch.full((DOCS,), LENGTH - 1),
        hooks=[ALIVE, name],
        positions=EVERYWHERE,
        batch_size=2,
    ),
    "gradients": lambda name: gradient_attribution(*ATTRIBUTION, [ALIVE, name]),
    "integrated gradients": lambda name: integrated_gradients(*ATTRIBUTION, [ALIVE, name]),
    "along the inputs": lambda name: integrated_gradients(*ATTRIBUTION, [ALIVE, name], path="inputs"),
    "edges": lambda name: edge_attribution(*ATTRIBUTION, ["hook_embed", name]),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_every_function_refuses_them(function):
    function(ALIVE)
    with pytest.raises(ValueError, match=f"'{DEAD}' {OUTSIDE}: .*{UNREAD}.* do: '{ALIVE}', "):
        function(DEAD)


def test_what_was_not_asked_for_by_name_may_do_nothing():
    scores = gradient_attribution(*ATTRIBUTION)["blocks.0.hook_mlp_in"]
    assert not scores.any()


def test_the_input_of_a_head_that_nothing_reads_is_no_direct_path():
    model = case_of("attention").model
    caches = [model.run_with_cache(tokens)[1] for tokens in (case.clean, case.corrupted)]
    mixer = model.blocks[1].mixer
    split = mixer.split
    mixer.split = lambda q, k, v: split(v, k, v)
    try:
        with pytest.raises(ValueError, match=f"'blocks.1.attn.hook_q_input' {OUTSIDE}"):
            patching.get_act_patch_direct_path(model, case.corrupted, *caches, case.metric, 0, 0, "q")
    finally:
        del mixer.split
