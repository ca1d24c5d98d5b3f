"""TransformerLens's sweeps over whole positions: every cell is the run with that one position replaced."""

import pandas as pd
import pytest
import torch
from transformer_lens import patching

# What a sweep stores is float32, whatever the model is.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

BY_POSITION = [
    (patching.get_act_patch_resid_pre, "hook_resid_pre"),
    (patching.get_act_patch_resid_mid, "hook_resid_mid"),
    (patching.get_act_patch_attn_out, "hook_mixer_out"),
    (patching.get_act_patch_mlp_out, "hook_mlp_out"),
]


def replace_position(clean, pos):
    """A hook that takes one position from `clean`, without writing in place."""

    def hook(activation, hook):
        here = torch.arange(activation.shape[1]) == pos
        return torch.where(here.view(1, -1, *[1] * (activation.ndim - 2)), clean, activation)

    return hook


POSITIONS = [1, 3]


def by_hand(case, cache, name):
    """The metric for every layer at POSITIONS, with ordinary hooks under the hook's own name."""
    full_names = [f"blocks.{layer}.{name}" for layer in range(case.model.cfg.n_layers)]
    cells = [[case.measure([(n, replace_position(cache[n], pos))]) for pos in POSITIONS] for n in full_names]
    return torch.tensor(cells)


@pytest.mark.parametrize(("sweep", "name"), BY_POSITION, ids=lambda x: x if isinstance(x, str) else "")
def test_every_cell_is_the_run_with_one_position_replaced(case, sweep, name):
    cache = case.clean_cache
    if name == "hook_resid_mid" and case.model.cfg.parallel_attn_mlp:
        with pytest.raises(KeyError, match="there is none in between"):
            sweep(case.model, case.corrupted, cache, case.metric)
        return
    swept = sweep(case.model, case.corrupted, cache, case.metric)
    torch.testing.assert_close(swept[:, POSITIONS], by_hand(case, cache, name), **CLOSE)
    if name == "hook_mlp_out" and case.model.cfg.attn_only:  # an MLP that is not there writes 0 in both runs
        torch.testing.assert_close(swept, torch.full_like(swept, case.measure([])), **CLOSE)
    else:
        assert (swept - case.measure([])).abs().max() > 0.1


@pytest.mark.parametrize("layer", [0, 1])
def test_the_clean_stream_at_every_position_restores_the_clean_run(case, layer):
    cache = case.clean_cache
    frame = pd.DataFrame({"layer": [layer]})

    def all_positions(activation, index, clean):
        activation[:] = clean
        return activation

    restored = patching.generic_activation_patch(
        case.model, case.corrupted, cache, case.metric, all_positions, "resid_pre", index_df=frame
    )
    clean = case.measure([], case.clean)
    torch.testing.assert_close(restored, torch.tensor([clean]), **CLOSE)
    assert abs(clean - case.measure([])) > 0.1


def test_a_clean_position_before_any_difference_changes_nothing(case):
    swept = patching.get_act_patch_resid_pre(case.model, case.corrupted, case.clean_cache, case.metric)
    torch.testing.assert_close(swept[:, 0], torch.full_like(swept[:, 0], case.measure([])), **CLOSE)


def test_block_every_stacks_the_three_sweeps(case):
    cache = case.clean_cache
    every = patching.get_act_patch_block_every(case.model, case.corrupted, cache, case.metric)
    names = ("hook_resid_pre", "hook_mixer_out", "hook_mlp_out")
    expected = torch.stack([by_hand(case, cache, name) for name in names])
    torch.testing.assert_close(every[..., POSITIONS], expected, **CLOSE)


def test_results_by_document_carry_their_baseline(case):
    cache = case.clean_cache
    result = patching.get_act_patch_resid_pre(
        case.model, case.corrupted, cache, case.per_document, reduce="none", baseline=True
    )
    with torch.no_grad():
        corrupted = case.per_document(case.model(case.corrupted)).float()
        clean = case.per_document(case.model(case.clean)).float()
        patched = case.model.run_with_hooks(
            case.corrupted,
            fwd_hooks=[("blocks.1.hook_resid_pre", replace_position(cache["resid_pre", 1], 3))],
        )
    torch.testing.assert_close(result.baseline, corrupted, **CLOSE)
    torch.testing.assert_close(result.values[1, 3], case.per_document(patched).float(), **CLOSE)
    torch.testing.assert_close(result.effect()[1, 3], result.values[1, 3] - corrupted)
    torch.testing.assert_close(result.mean()[:, POSITIONS], by_hand(case, cache, "hook_resid_pre"), **CLOSE)
    expected = (result.values[1, 3] - corrupted) / (clean - corrupted)
    torch.testing.assert_close(result.normalized(clean)[1, 3], expected)
    table = result.to_dataframe()
    row = table[(table.layer == 1) & (table.pos == 3) & (table.example == 1)]
    assert row.value.item() == pytest.approx(float(result.values[1, 3, 1]))


def test_several_metrics_share_one_sweep(case):
    cache = case.clean_cache
    metrics = {"all": case.per_document, "last": lambda logits: logits[:, -1, 0]}
    result = patching.get_act_patch_attn_out(case.model, case.corrupted, cache, metrics, reduce="mean")
    torch.testing.assert_close(
        result["all"].values[:, POSITIONS], by_hand(case, cache, "hook_mixer_out"), **CLOSE
    )
    with torch.no_grad():
        hook = "blocks.0.hook_mixer_out", replace_position(cache["attn_out", 0], 1)
        logits = case.model.run_with_hooks(case.corrupted, fwd_hooks=[hook])
    torch.testing.assert_close(result["last"].values[0, 1], logits[:, -1, 0].mean().float(), **CLOSE)


def test_block_every_by_document_names_its_parts(case):
    case = case.first(4)
    cache = case.clean_cache
    result = patching.get_act_patch_block_every(
        case.model, case.corrupted, cache, case.per_document, reduce="none", baseline=True
    )
    assert result.patch_type_names == ["resid_pre", "attn_out", "mlp_out"]
    torch.testing.assert_close(
        result.mean()[1][:, POSITIONS], by_hand(case, cache, "hook_mixer_out"), **CLOSE
    )


def test_a_model_in_training_mode_is_refused(case):
    case.model.train()
    try:
        with pytest.raises(ValueError, match="evaluation"):
            patching.get_act_patch_resid_pre(case.model, case.corrupted, case.clean_cache, case.metric)
    finally:
        case.model.eval()
