"""Sweeps over any hook and axes: every cell is one run with one hook."""

import pandas as pd
import pytest
import torch

from hooked_ssm import patching, zoo
from hooked_ssm.attribution import gradient_attribution
from hooked_ssm.ops.state_edit import StateEdit

from ..models import scattered
from .case import CLOSE, DOCS, LENGTH, Case, case_of, hooks_outside

PLACES = [1, 3, LENGTH - 1]


@pytest.fixture(autouse=True)
def runs_start_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where that does not pay, as in models as small as these."""
    monkeypatch.setattr("hooked_ssm.patching.base_run.PAYS", float("inf"))
    monkeypatch.setattr("hooked_ssm.patching.sweep.FEWEST_CELLS", 1)


def one_by_one(case: Case, name: str, dim: int, index: int) -> float:
    """The run with one index of one axis of one hook replaced."""
    clean = case.cache[name]

    def replace(activation, hook):
        here = torch.arange(activation.shape[dim]) == index
        here = here.reshape([-1 if d == dim else 1 for d in range(activation.ndim)])
        return torch.where(here, clean, activation)

    return case.measure((name, replace))


def hooks_with_positions(model) -> list[str]:
    table = model.hook_table()
    table = table[(table.unavailable == "") & table["shape"].str.startswith("[batch, pos")]
    return [name for name in table.name if name.startswith("blocks.0.")]


@pytest.mark.parametrize("kind", [*zoo.PRESETS, "rotary"])
def test_every_hook_of_every_architecture_can_be_swept(kind):
    case, places = case_of(kind), [3]
    cells = pd.DataFrame({"pos": places})
    moved = 0
    outside = hooks_outside(case.model)
    for name in hooks_with_positions(case.model):
        if name in outside:
            with pytest.raises(ValueError, match="does not lie between the inputs and the metric"):
                patching.patch_sweep(case.model, case.corrupted, case.cache, case.metric, name, ("pos",))
            continue
        swept = patching.patch_sweep(
            case.model, case.corrupted, case.cache, case.metric, name, index_df=cells
        )
        wanted = torch.tensor([one_by_one(case, name, 1, pos) for pos in places], dtype=torch.float64)
        torch.testing.assert_close(swept, wanted, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
        moved += bool((swept - case.measure()).abs().max() > 1e-6)
    assert moved > 8


MIXER_SWEEPS = [
    ("conv_in", "conv_in", ("layer", "pos")),
    ("conv", "conv", ("layer", "pos")),
    ("x", "x", ("layer", "pos")),
    ("gate", "gate", ("layer", "pos")),
    ("dt", "ssm_dt", ("layer", "pos")),
    ("B", "ssm_B", ("layer", "pos")),
    ("C", "ssm_C", ("layer", "pos")),
    ("decay", "ssm_decay", ("layer", "pos")),
    ("write", "ssm_write", ("layer", "pos")),
    ("state", "ssm_state", ("layer", "pos")),
    ("y", "y", ("layer", "pos")),
]


@pytest.mark.parametrize(
    ("sweep", "hook", "axes"), MIXER_SWEEPS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_sweep_inside_a_mixer_is_one_run_a_cell_and_nan_where_a_layer_has_no_such_hook(sweep, hook, axes):
    case = case_of("hybrid")  # Mamba in layer 0, attention in layer 1
    function = getattr(patching, f"get_act_patch_{sweep}")
    swept = function(case.model, case.corrupted, case.cache, case.metric)
    assert swept.shape == (2, LENGTH) and swept[1].isnan().all()
    wanted = [one_by_one(case, f"blocks.0.hook_{hook}", 1, pos) for pos in range(LENGTH)]
    torch.testing.assert_close(swept[0], torch.tensor(wanted, dtype=torch.float64), **CLOSE)
    assert (swept[0] - case.measure()).abs().max() > 1e-4


def test_single_taps_are_swept():
    case = case_of("mamba")
    swept = patching.get_act_patch_conv_taps(case.model, case.corrupted, case.cache, case.metric)
    assert swept.shape == (2, LENGTH, 4)
    name = "blocks.0.hook_conv_taps"
    clean = case.cache[name]
    for pos in PLACES:
        for tap in range(4):

            def replace(taps, hook, pos=pos, tap=tap):
                taps[:, pos, tap] = clean[:, pos, tap]

            assert float(swept[0, pos, tap]) == pytest.approx(case.measure((name, replace)), abs=1e-10)
    assert (swept[0, 3, 1] - case.measure()).abs() < 1e-10  # two tokens before 3 nothing differs
    assert (swept[0, 3, 2] - case.measure()).abs() > 1e-6 or (swept[0, 3, 0] - case.measure()).abs() > 1e-6


def test_a_read_only_state_changes_one_position_and_a_carried_one_all_later_ones():
    case = case_of("mamba")
    name, pos = "blocks.1.hook_ssm_state", 3
    clean = case.cache[name]
    sweeps = [
        patching.get_act_patch_state(case.model, case.corrupted, case.cache, case.metric, read_only=read_only)
        for read_only in (True, False)
    ]
    raw = case.model.run_with_cache(case.corrupted)[1]

    def only_read(y, hook):
        """What C reads off the clean state, instead of the corrupted one, at this position alone."""
        C = raw["blocks.1.hook_ssm_C"][:, pos]
        change = torch.einsum("ben,bn->be", clean[:, pos] - raw[name][:, pos], C)
        return torch.cat([y[:, :pos], (y[:, pos] + change)[:, None], y[:, pos + 1 :]], dim=1)

    assert float(sweeps[0][1, pos]) == pytest.approx(case.measure(("blocks.1.hook_y", only_read)), abs=1e-10)
    assert float(sweeps[1][1, pos]) == pytest.approx(one_by_one(case, name, 1, pos), abs=1e-10)
    assert (sweeps[0] - sweeps[1]).abs().max() > 1e-5

    mask = torch.zeros(DOCS, LENGTH, 1, 1, dtype=torch.bool)
    mask[:, pos + 1] = True

    def held(states, hook):
        states = states.clone()
        states[:, pos] = clean[:, pos]
        return StateEdit(states, mask)

    assert float(sweeps[0][1, pos]) == pytest.approx(case.measure((name, held)), abs=1e-10)


@pytest.mark.parametrize(("axis", "groups", "count"), [("head", None, 2), ("channel", {"channel": 3}, 3)])
def test_channels_are_swept_by_head_and_by_group(axis, groups, count):
    case = case_of("mamba")
    name = "blocks.0.hook_conv"
    clean = case.cache[name]
    swept = patching.get_act_patch_conv(
        case.model,
        case.corrupted,
        case.cache,
        case.metric,
        index_axis_names=("layer", "pos", axis),
        groups=groups,
    )
    assert swept.shape == (2, LENGTH, count)
    width = clean.shape[-1]
    edges = [width * g // count for g in range(count + 1)]
    for pos in PLACES:
        for g in range(count):

            def replace(conv, hook, pos=pos, g=g):
                conv[:, pos, edges[g] : edges[g + 1]] = clean[:, pos, edges[g] : edges[g + 1]]

            assert float(swept[0, pos, g]) == pytest.approx(case.measure((name, replace)), abs=1e-10)
    whole = patching.get_act_patch_conv(case.model, case.corrupted, case.cache, case.metric)
    assert (swept[..., 0] - whole).abs().max() > 1e-5


@pytest.mark.parametrize("kind", ["attention", "mamba", "a bridge"])
def test_logits_where_the_metric_reads_are_all_that_it_needs(kind):
    case = case_of(kind)
    each = torch.tensor([3, 5, 2])
    mask = torch.zeros(DOCS, LENGTH, dtype=torch.bool)
    mask[0, [1, 4]] = mask[2, 5] = True
    given = case.model, case.corrupted, case.cache

    def metric(logits):
        return logits.tanh()[..., 3].sum()

    for positions, cut in [
        (-2, lambda logits: logits[:, -2]),
        (each, lambda logits: logits[torch.arange(DOCS), each]),
        (mask, lambda logits: logits[mask]),
    ]:
        wanted = patching.get_act_patch_resid_pre(*given, lambda logits, cut=cut: metric(cut(logits)))
        shapes = []

        def seen(logits, shapes=shapes):
            shapes.append(logits.shape)
            return metric(logits)

        swept = patching.get_act_patch_resid_pre(*given, seen, logit_positions=positions)
        torch.testing.assert_close(swept, wanted, **CLOSE)
        assert set(shapes) == {torch.Size((DOCS, 11))}
        assert wanted.std() > 1e-3


def test_a_sweep_without_layers_takes_a_hooks_full_name():
    case = case_of("attention")
    swept = patching.patch_sweep(case.model, case.corrupted, case.cache, case.metric, "hook_embed", ("pos",))
    wanted = [one_by_one(case, "hook_embed", 1, pos) for pos in range(LENGTH)]
    torch.testing.assert_close(swept, torch.tensor(wanted, dtype=torch.float64), **CLOSE)
    final = patching.patch_sweep(
        case.model, case.corrupted, case.cache, case.metric, "ln_final.hook_normalized", ()
    )
    with torch.no_grad():
        restored = float(case.metric(case.model(case.clean)))
    assert final.shape == () and float(final) == pytest.approx(restored, abs=1e-10)


def test_a_cache_may_be_a_dictionary_of_what_one_likes():
    """Zeros, to knock the gate out."""
    case = case_of("mamba")
    zeros = {f"blocks.{layer}.mixer.hook_gate": torch.zeros(DOCS, LENGTH, 16) for layer in (0, 1)}
    swept = patching.get_act_patch_gate(case.model, case.corrupted, zeros, case.metric)

    def replace(gate, hook):
        gate[:, 2] = 0

    assert float(swept[1, 2]) == pytest.approx(case.measure(("blocks.1.hook_gate", replace)), abs=1e-10)


@pytest.mark.parametrize("kind", ["attention", "mamba", "hybrid", "a bridge"])
def test_neither_chunks_nor_kept_states_change_a_number(kind, monkeypatch):
    case = case_of(kind, length=12)
    given = case.model, case.corrupted, case.cache, case.metric
    wanted = patching.get_act_patch_resid_pre(*given)
    for size in (1, 4, 1000):
        torch.testing.assert_close(patching.get_act_patch_resid_pre(*given, batch_size=size), wanted, **CLOSE)
    monkeypatch.setattr("hooked_ssm.patching.rows.FEWEST_POSITIONS", 1)
    torch.testing.assert_close(patching.get_act_patch_resid_pre(*given), wanted, **CLOSE)
    for pays in (0.0, float("inf")):
        monkeypatch.setattr("hooked_ssm.patching.base_run.PAYS", pays)
        torch.testing.assert_close(patching.get_act_patch_resid_pre(*given), wanted, **CLOSE)
    monkeypatch.setattr("hooked_ssm.patching.base_run.free_bytes", lambda device: 0)
    monkeypatch.setattr("hooked_ssm.patching.memory.free_bytes", lambda device: 0)
    torch.testing.assert_close(patching.get_act_patch_resid_pre(*given), wanted, **CLOSE)


def test_runs_start_at_the_patched_layer_near_the_patched_position_and_only_where_something_differs():
    case = case_of("mamba", length=12)
    seen: list[tuple[int, ...]] = []
    block = case.model.blocks[1]
    handle = block.ln1.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    try:
        cells = pd.DataFrame({"layer": [1], "pos": [11]})
        patching.get_act_patch_resid_pre(case.model, case.corrupted, case.cache, case.metric, index_df=cells)
    finally:
        handle.remove()
    assert seen[-1] == (DOCS - 1, 12 - 10)  # the last document is the same in both runs; 10 is a start


def test_hooks_that_a_user_has_left_on_the_model_stay_in_force():
    case = case_of("mamba")
    try:
        case.model.add_hook(
            "blocks.1.hook_gate", lambda gate, hook: gate * (torch.arange(LENGTH) == 5)[:, None]
        )
        wanted = [one_by_one(case, "blocks.0.hook_resid_pre", 1, pos) for pos in range(LENGTH)]
        swept = patching.get_act_patch_resid_pre(case.model, case.corrupted, case.cache, case.metric)
    finally:
        case.model.reset_hooks()
    torch.testing.assert_close(swept[0], torch.tensor(wanted, dtype=torch.float64), **CLOSE)


def test_a_sweep_leaves_the_model_as_it_was_and_no_graph():
    model = scattered("hybrid")
    case = Case(
        model, *(getattr(case_of("hybrid"), name) for name in ("clean", "corrupted", "readout", "cache"))
    )
    before = {name: p.clone() for name, p in model.state_dict().items()}
    swept = patching.get_act_patch_state(model, case.corrupted, case.cache, case.metric)
    assert not model.list_hooks() and not swept.requires_grad
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_sweep_shows_how_far_it_is_unless_told_not_to(monkeypatch, capsys):
    monkeypatch.setattr("hooked_ssm.patching.sweep.BAR_DELAY", 0)
    case = case_of("mamba")
    for verbose in (False, True):
        patching.get_act_patch_conv(case.model, case.corrupted, case.cache, case.metric, verbose=verbose)
        assert ("conv" in capsys.readouterr().err) == verbose


@pytest.mark.parametrize("kind", ["attention", "mamba"])
def test_documents_that_differ_first_at_different_positions_keep_their_own_logits(kind):
    """The clean residual stream, put in whole, gives the clean run, document by document."""
    model = scattered(kind)
    clean = torch.randint(model.cfg.d_vocab, (3, 6), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    for doc, pos in enumerate([4, 1, 2]):
        corrupted[doc, pos] = (corrupted[doc, pos] + 3) % model.cfg.d_vocab
    _, cache = model.run_with_cache(clean)
    answer = lambda logits: logits[:, 5]
    for where in (-1, torch.full((3,), 5)):
        swept = patching.patch_sweep(
            model, corrupted, cache, answer, "resid_pre", ("layer",), reduce="none", logit_positions=where
        )
        wanted = answer(model(clean)[:, -1]).expand(model.cfg.n_layers, -1)
        torch.testing.assert_close(swept.values, wanted.detach(), **CLOSE)


@pytest.mark.parametrize("function", ["sweep", "setter", "attribution"])
def test_no_logit_is_made_that_the_metric_does_not_read(function, monkeypatch):
    case, made = case_of("hybrid"), []
    given = case.model, case.corrupted, case.cache
    unembedded = case.model.unembedded

    def counted(final):
        made.append(final[..., 0].numel())
        return unembedded(final)

    def run(metric):
        made.clear()
        match function:
            case "sweep":
                return patching.get_act_patch_resid_pre(*given, metric)
            case "setter":
                setter = lambda activation, index, clean: torch.cat([activation[:, :2], clean[:, 2:]], 1)
                return patching.generic_activation_patch(*given, metric, setter, "resid_pre", ("layer",))
            case _:
                documents = case.model, case.clean, case.corrupted
                return gradient_attribution(*documents, metric, "resid_pre").by_layer("resid_pre")

    monkeypatch.setattr(case.model, "unembedded", counted)
    wanted = run(lambda logits: (logits + 0)[:, -1, 3].exp().mean())
    assert set(made) == {0, DOCS * LENGTH}
    found = run(lambda logits: logits[:, -1, 3].exp().mean())
    assert set(made) == {0, DOCS}
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert wanted.std() > 1e-4


def test_what_is_hooked_around_the_unembedding_sees_whole_documents():
    case = case_of("mamba")
    last = (torch.arange(LENGTH) == LENGTH - 1)[:, None]
    handle = case.model.ln_final.register_forward_hook(lambda module, args, out: out * last)
    try:
        wanted = [one_by_one(case, "blocks.0.hook_resid_pre", 1, pos) for pos in range(LENGTH)]
        swept = patching.get_act_patch_resid_pre(case.model, case.corrupted, case.cache, case.metric)
    finally:
        handle.remove()
    torch.testing.assert_close(swept[0], torch.tensor(wanted, dtype=torch.float64), **CLOSE)
