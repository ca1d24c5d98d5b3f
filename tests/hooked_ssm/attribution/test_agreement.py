"""Attribution beside patching of the same cells."""

import pytest
import torch

from hooked_ssm.attribution import agreement, gradient_attribution
from hooked_ssm.patching import patch_sweep

from ..patching.case import case_of


def test_cells_are_those_of_the_sweep_and_of_the_attribution():
    case = case_of("hybrid")
    documents = case.model, case.clean, case.corrupted, case.metric
    found = agreement(*documents, ["resid_pre", "ssm_state"])
    sweep = patch_sweep(case.model, case.corrupted, case.cache, case.metric, "resid_pre")
    scores = gradient_attribution(*documents, "resid_pre")
    cells = found.cells[found.cells.activation == "resid_pre"]
    base = case.measure()
    for row in cells.itertuples():
        assert row.patching == pytest.approx(float(sweep[row.layer, row.pos]) - base)
        score = scores[f"blocks.{row.layer}.hook_resid_pre"][row.pos]
        assert row.attribution == pytest.approx(float(score))
    assert len(found.cells[found.cells.activation == "ssm_state"]) == 6  # layer 1 has none
    stats = found.table.loc["resid_pre"]
    assert stats.cells == 12
    assert stats.correlation == pytest.approx(cells.patching.corr(cells.attribution))
    assert stats["rank correlation"] == pytest.approx(cells.patching.rank().corr(cells.attribution.rank()))
    assert stats["largest difference"] == pytest.approx((cells.patching - cells.attribution).abs().max())
    assert stats["largest effect"] == pytest.approx(cells.patching.abs().max())
    assert found.table.loc["all"].cells == 18 and "largest difference" in str(found)


@pytest.mark.parametrize("metric", ["metric", "per_document"])
def test_integrated_gradients_agree_where_the_whole_activation_is_patched(metric):
    case = case_of("mamba")
    names = ["mixer_out", "conv_taps", "ssm_state", "gate"]
    found = agreement(case.model, case.clean, case.corrupted, getattr(case, metric), names, (), steps=60)
    assert (found.table["largest difference"] < 1e-6 * found.table["largest effect"]).all()


def test_groups_and_heads_are_the_sweeps():
    case = case_of("mamba")
    documents = case.model, case.clean, case.corrupted, case.per_document
    names = ["mixer_out", "gate"]
    found = agreement(*documents, names, ("pos", "channel"), groups={"channel": 2})
    groups = {"channel": 2}
    scores = gradient_attribution(*documents, names, ("pos", "channel"), groups=groups)
    for name in names:
        cells = found.cells[found.cells.activation == name]
        sweep = patch_sweep(
            case.model,
            case.corrupted,
            case.cache,
            case.per_document,
            name,
            ("layer", "pos", "channel"),
            reduce="mean",
            groups=groups,
        )
        effect = (sweep - scores.metric_corrupted.mean()).flatten()
        assert cells.patching.tolist() == pytest.approx(effect.tolist())
        assert cells.attribution.tolist() == pytest.approx(scores.by_layer(name).flatten().tolist())
    by_head = agreement(*documents, "gate", ("head",))
    assert len(by_head.cells) == 4


def test_matrices_are_swept_by_the_position_that_reads():
    case = case_of("attention")
    found = agreement(case.model, case.clean, case.corrupted, case.metric, "pattern", ("head", "pos"))
    with torch.no_grad():
        sweep = patch_sweep(
            case.model, case.corrupted, case.cache, case.metric, "pattern", ("layer", "head", "dest")
        )
    assert found.cells.patching.tolist() == pytest.approx((sweep - case.measure()).flatten().tolist())


def test_activations_are_named_as_in_patching():
    case = case_of("mamba")
    with pytest.raises(ValueError, match="takes activations as patching does"):
        agreement(case.model, case.clean, case.corrupted, case.metric, "blocks.0.hook_resid_pre")
