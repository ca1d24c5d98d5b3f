"""Every sweep of TransformerLens: its own function's numbers, on models of ours and on a bridge."""

from collections.abc import Iterator

import pandas as pd
import pytest
import torch
from transformer_lens import patching as theirs

from hooked_ssm import patching as ours

from .case import CLOSE, DOCS, LENGTH, case_of

BLOCK = ["resid_pre", "resid_mid", "attn_out", "mlp_out", "block_every"]
HEADS = [f"attn_head_{x}_{how}" for x in ("out", "q", "k", "v") for how in ("by_pos", "all_pos")]
PATTERNS = [f"attn_head_pattern_{how}" for how in ("by_pos", "all_pos", "dest_src_pos")]
PATTERNS += ["attn_head_all_pos_every", "attn_head_by_pos_every"]
MODELS = ["attention", "mamba", "hybrid", "a bridge"]
WITH_PATTERNS = ["attention", "Mamba by channel", "hybrid by channel", "a bridge"]


@pytest.fixture(autouse=True)
def their_results_in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def both(name: str, case, *args, **options):
    for library in (ours, theirs):
        with torch.no_grad():
            sweep = getattr(library, f"get_act_patch_{name}")
            yield sweep(case.model, case.corrupted, case.cache, *args, **options)


@pytest.mark.parametrize("name", BLOCK + HEADS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_sweep_has_their_numbers(kind, name):
    case = case_of(kind)
    if name in ("resid_mid",) and kind == "a bridge":
        name = "resid_pre"  # its blocks are of another shape
    without_mlps = kind in ("mamba", "hybrid")
    if name == "mlp_out" and without_mlps:
        with pytest.raises(ValueError, match="'blocks.0.hook_mlp_out' does not lie between the inputs and"):
            ours.get_act_patch_mlp_out(case.model, case.corrupted, case.cache, case.metric)
        return
    mine, wanted = both(name, case, case.metric)
    if name == "block_every" and without_mlps:
        assert mine[2].isnan().all() and mine.shape == wanted.shape
        mine, wanted = mine[:2], wanted[:2]
    torch.testing.assert_close(mine, wanted, **CLOSE)
    assert (mine - case.measure()).abs().max() > 1e-3


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("kind", WITH_PATTERNS)
def test_a_sweep_of_patterns_has_their_numbers(kind, name):
    case = case_of(kind)
    mine, wanted = both(name, case, case.metric)
    torch.testing.assert_close(mine, wanted, **CLOSE)
    assert (mine - case.measure()).abs().max() > 1e-3


def test_every_sweep_of_theirs_is_here():
    names = {name for name in dir(theirs) if name.startswith(("get_act_patch", "generic_activation_patch"))}
    assert names <= set(ours.__all__)
    assert len(names) >= 20


@pytest.mark.parametrize(
    "name", ["resid_pre", "attn_head_out_by_pos", "attn_head_by_pos_every", "block_every"]
)
@pytest.mark.parametrize("baseline", [False, True])
def test_results_by_document_have_their_numbers_and_names(name, baseline):
    case = case_of("attention")
    metrics = {"one": case.per_document, "two": lambda logits: logits[:, -1, 3]}
    mine, wanted = both(name, case, metrics, reduce="none", baseline=baseline)
    torch.testing.assert_close(mine.values, wanted.values, **CLOSE)
    assert mine.values.shape[-1] == DOCS
    assert mine.metric_names == wanted.metric_names and mine.patch_type_names == wanted.patch_type_names
    assert mine.axis_names == wanted.axis_names
    pd.testing.assert_frame_equal(mine.index_df, wanted.index_df)
    if baseline:
        torch.testing.assert_close(mine.baseline, wanted.baseline, **CLOSE)
        torch.testing.assert_close(mine.effect(), wanted.effect(), **CLOSE)
        torch.testing.assert_close(mine["two"].stderr(), wanted["two"].stderr(), **CLOSE)


@pytest.mark.parametrize("reduce", ["scalar", "mean"])
def test_reduced_results_have_their_numbers(reduce):
    case = case_of("hybrid")
    metric = case.metric if reduce == "scalar" else case.per_document
    for options in ({}, {"baseline": True}):
        mine, wanted = both("resid_pre", case, metric, reduce=reduce, **options)
        if options:
            torch.testing.assert_close(mine.baseline, wanted.baseline, **CLOSE)
            mine, wanted = mine.values, wanted.values
        torch.testing.assert_close(mine, wanted, **CLOSE)
    (mine, frame), (wanted, their_frame) = both(
        "resid_pre", case, metric, reduce=reduce, return_index_df=True
    )
    torch.testing.assert_close(mine, wanted, **CLOSE)
    pd.testing.assert_frame_equal(frame, their_frame)


@pytest.mark.parametrize("kind", MODELS)
def test_the_generic_function_has_their_numbers_with_any_setter(kind):
    case = case_of(kind)

    def later(activation, index, clean):
        """Every position from the index on, in all documents but the first."""
        activation[1:, index[1] :] = clean[1:, index[1] :]
        return activation

    cells = pd.DataFrame([(1, 2), (0, 3), (0, 0)], columns=["layer", "pos"])
    for setter, frame, axes in [
        (later, cells, None),
        (later, None, ("layer", "pos")),
        (theirs.layer_pos_patch_setter, cells, None),
        (theirs.layer_pos_patch_setter, None, ("layer", "pos")),
    ]:
        mine, wanted = (
            library.generic_activation_patch(
                case.model, case.corrupted, case.cache, case.metric, setter, "resid_pre", axes, frame
            )
            for library in (ours, theirs)
        )
        assert mine.shape == ((3,) if axes is None else (2, LENGTH))
        torch.testing.assert_close(mine, wanted, **CLOSE)


@pytest.mark.parametrize("component", ["q", "k", "v"])
@pytest.mark.parametrize("kind", ["attention", "mamba", "hybrid", "a bridge"])
def test_direct_paths_have_their_numbers(kind, component):
    case = case_of(kind)
    with torch.no_grad():
        corrupted_cache = case.model.run_with_cache(case.corrupted)[1]
        args = case.model, case.corrupted, case.cache, corrupted_cache, case.metric
        wanted = theirs.get_act_patch_direct_path(*args, 0, 1, component, verbose=False)
        mine = ours.get_act_patch_direct_path(*args, 0, 1, component)
        every = ours.get_act_patch_direct_path_all_sources(*args, component)
        all_wanted = theirs.get_act_patch_direct_path_all_sources(*args, component, verbose=False)
    torch.testing.assert_close(mine, wanted, **CLOSE)
    torch.testing.assert_close(every, all_wanted, **CLOSE)
    assert (mine[1] - case.measure()).abs().max() > 1e-3 and not mine[0].any()
    assert not case.model.cfg.use_split_qkv_input
