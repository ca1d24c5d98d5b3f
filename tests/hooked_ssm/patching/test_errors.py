"""Each mistake has one clear error."""

import pandas as pd
import pytest
import torch

from hooked_ssm import patching

from .case import DOCS, LENGTH, case_of


@pytest.fixture
def sweep():
    case = case_of("hybrid")

    def run(activation_name="resid_pre", metric=case.metric, cache=None, corrupted=None, **options):
        return patching.patch_sweep(
            case.model,
            case.corrupted if corrupted is None else corrupted,
            case.cache if cache is None else cache,
            metric,
            activation_name,
            **options,
        )

    return run


def frame(layer: int, pos: int) -> pd.DataFrame:
    return pd.DataFrame({"layer": [layer], "pos": [pos]})


def test_a_metric_gives_one_number(sweep):
    with pytest.raises(ValueError, match=r"must return a scalar with reduce='scalar', got shape \[3, 6\]"):
        sweep(metric=lambda logits: logits.mean(-1))
    with pytest.raises(ValueError, match=r"one value a document, \[3\], with reduce='none', got shape \[\]"):
        sweep(metric=lambda logits: logits.mean(), reduce="none")
    with pytest.raises(TypeError):
        sweep(metric=3.0)
    with pytest.raises(ValueError, match="at least one metric"):
        sweep(metric={})
    with pytest.raises(ValueError, match="reduce must be one of"):
        sweep(reduce="sum")


def test_a_metric_may_give_a_plain_number(sweep):
    assert sweep(metric=lambda logits: float(logits.mean())).shape == (2, LENGTH)


def test_hooks_must_exist_and_fire(sweep):
    with pytest.raises(KeyError, match="no hook named 'blocks.0.hook_resid_pr'; did you mean"):
        sweep("resid_pr")
    with pytest.raises(ValueError, match="would not fire: it fires after model.set_use_attn_result"):
        sweep("result", index_axis_names=("layer", "pos", "head"))
    with pytest.raises(ValueError, match=r"layers \[1\] have no such hook; these have: \[0\]"):
        sweep("ssm_state", index_df=frame(1, 0))


def test_the_clean_cache_must_hold_the_hook(sweep):
    with pytest.raises(KeyError, match="does not hold 'blocks.0.hook_resid_pre'"):
        sweep(cache={})


@pytest.mark.parametrize("axes", [("layer", "head"), ("layer", "tap"), ("layer", "batch")])
def test_axes_must_be_the_hooks_own(sweep, axes):
    if axes[1] == "head":
        assert sweep(index_axis_names=axes).shape == (2, 2)  # channels by head
        with pytest.raises(ValueError, match="two are the same"):
            sweep(index_axis_names=("layer", "head", "channel"))
    else:
        with pytest.raises(ValueError, match=f"none of them '{axes[1]}'"):
            sweep(index_axis_names=axes)


def test_positions_must_be_in_range(sweep):
    for layer, pos in ((0, LENGTH), (0, -1), (2, 0), (-1, 0)):
        with pytest.raises(ValueError, match="must lie in 0.."):
            sweep(index_df=frame(layer, pos))
    wrong = [LENGTH, -LENGTH - 1, torch.tensor([0, 1, LENGTH]), torch.tensor([0, 1])]
    for positions in wrong:
        with pytest.raises(ValueError, match=r"logit_positions must (lie in 0..5|be one a document)"):
            sweep(logit_positions=positions)
    with pytest.raises(ValueError, match="a mask of logit_positions"):
        sweep(logit_positions=torch.zeros(DOCS, LENGTH, dtype=torch.bool))


def test_clean_and_corrupted_documents_must_be_as_many_and_as_long(sweep):
    case = case_of("hybrid")
    for corrupted in (case.corrupted[:, :-1], case.corrupted[:2]):
        with pytest.raises(ValueError, match=r"in the corrupted run and \[3, 6, 8\] in the clean cache"):
            sweep(corrupted=corrupted, metric=lambda logits: logits.mean())


def test_models_must_not_be_in_training_mode(sweep):
    case = case_of("hybrid")
    case.model.blocks[1].train()
    try:
        with pytest.raises(ValueError, match="blocks.1 is in training mode: call model.eval"):
            sweep()
    finally:
        case.model.eval()


def test_options_must_make_sense(sweep):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        sweep(batch_size=0)
    with pytest.raises(ValueError, match="read_only is for recurrent states"):
        sweep(read_only=True)
    with pytest.raises(ValueError, match="has its index_df"):
        sweep(return_index_df=True, baseline=True)
    with pytest.raises(ValueError, match="1 group or more"):
        sweep(index_axis_names=("layer", "channel"), groups={"channel": 0})
    with pytest.raises(ValueError, match="has 8 entries, not enough for 9 groups"):
        sweep(index_axis_names=("layer", "channel"), groups={"channel": 9})


def test_direct_paths_start_at_a_head_that_there_is():
    case = case_of("attention")
    for layer, head in ((2, 0), (0, 2), (-1, 0)):
        with pytest.raises(ValueError, match=r"src_(layer|head) must lie in 0..1"):
            patching.get_act_patch_direct_path(
                case.model, case.corrupted, case.cache, case.cache, case.metric, layer, head
            )
    with pytest.raises(ValueError, match="component must be"):
        patching.get_act_patch_direct_path(
            case.model, case.corrupted, case.cache, case.cache, case.metric, 0, 0, "z"
        )
