"""TransformerLens's sweeps, by their own names. All take `(model, corrupted_tokens, clean_cache, metric)`.

The same numbers, in the dtype of the metric; and every option of `patch_sweep`. Works on any mixer that has
the hook: layers without one are NaN.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.patching import PatchingResult, make_df_from_ranges

from hooked_ssm.patching.sweep import patch_sweep

BLOCK = ("layer", "pos")
get_act_patch_resid_pre = partial(patch_sweep, activation_name="resid_pre", index_axis_names=BLOCK)
get_act_patch_resid_mid = partial(patch_sweep, activation_name="resid_mid", index_axis_names=BLOCK)
get_act_patch_attn_out = partial(patch_sweep, activation_name="attn_out", index_axis_names=BLOCK)
get_act_patch_mlp_out = partial(patch_sweep, activation_name="mlp_out", index_axis_names=BLOCK)

BY_POS = ("layer", "pos", "head")
get_act_patch_attn_head_out_by_pos = partial(patch_sweep, activation_name="z", index_axis_names=BY_POS)
get_act_patch_attn_head_q_by_pos = partial(patch_sweep, activation_name="q", index_axis_names=BY_POS)
get_act_patch_attn_head_k_by_pos = partial(patch_sweep, activation_name="k", index_axis_names=BY_POS)
get_act_patch_attn_head_v_by_pos = partial(patch_sweep, activation_name="v", index_axis_names=BY_POS)

ALL_POS = ("layer", "head")
get_act_patch_attn_head_out_all_pos = partial(patch_sweep, activation_name="z", index_axis_names=ALL_POS)
get_act_patch_attn_head_q_all_pos = partial(patch_sweep, activation_name="q", index_axis_names=ALL_POS)
get_act_patch_attn_head_k_all_pos = partial(patch_sweep, activation_name="k", index_axis_names=ALL_POS)
get_act_patch_attn_head_v_all_pos = partial(patch_sweep, activation_name="v", index_axis_names=ALL_POS)

# Patterns are [batch, head, dest, src].
get_act_patch_attn_head_pattern_all_pos = partial(
    patch_sweep, activation_name="pattern", index_axis_names=("layer", "head_index")
)
get_act_patch_attn_head_pattern_by_pos = partial(
    patch_sweep, activation_name="pattern", index_axis_names=("layer", "head_index", "dest_pos")
)
get_act_patch_attn_head_pattern_dest_src_pos = partial(
    patch_sweep, activation_name="pattern", index_axis_names=("layer", "head_index", "dest_pos", "src_pos")
)

HEAD_TYPES = ("out", "q", "k", "v", "pattern")
BLOCK_TYPES = ("resid_pre", "attn_out", "mlp_out")


def get_act_patch_attn_head_all_pos_every(
    model: Any, corrupted_tokens: Int[Tensor, "batch pos"], clean_cache: Any, metric: Any, **options: Any
) -> Float[Tensor, "patch_type layer head"] | PatchingResult:
    """Every head across all positions: out, q, k, v and pattern, stacked."""
    sweeps = (
        get_act_patch_attn_head_out_all_pos,
        get_act_patch_attn_head_q_all_pos,
        get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_v_all_pos,
        get_act_patch_attn_head_pattern_all_pos,
    )
    results = [sweep(model, corrupted_tokens, clean_cache, metric, **options) for sweep in sweeps]
    return _stacked(results, HEAD_TYPES, ("layer", "head"))


def get_act_patch_attn_head_by_pos_every(
    model: Any, corrupted_tokens: Int[Tensor, "batch pos"], clean_cache: Any, metric: Any, **options: Any
) -> Float[Tensor, "patch_type layer pos head"] | PatchingResult:
    """Every head by position (of a pattern: by the position that reads): out, q, k, v, pattern, stacked."""
    sweeps = (
        get_act_patch_attn_head_out_by_pos,
        get_act_patch_attn_head_q_by_pos,
        get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_v_by_pos,
        partial(patch_sweep, activation_name="pattern", index_axis_names=("layer", "dest_pos", "head_index")),
    )
    results = [sweep(model, corrupted_tokens, clean_cache, metric, **options) for sweep in sweeps]
    return _stacked(results, HEAD_TYPES, ("layer", "pos", "head"))


def get_act_patch_block_every(
    model: Any, corrupted_tokens: Int[Tensor, "batch pos"], clean_cache: Any, metric: Any, **options: Any
) -> Float[Tensor, "patch_type layer pos"] | PatchingResult:
    """The residual stream, the mixers' outputs and the MLPs' outputs by position, stacked.

    NaN for the MLPs of a model without any.
    """
    given = model, corrupted_tokens, clean_cache, metric
    results = [sweep(*given, **options) for sweep in (get_act_patch_resid_pre, get_act_patch_attn_out)]
    if getattr(model.cfg, "attn_only", False):
        results.append(_unmeasured(results[0]))
    else:
        results.append(get_act_patch_mlp_out(*given, **options))
    return _stacked(results, BLOCK_TYPES, ("layer", "pos"))


def _unmeasured(like: Any) -> Any:
    """A result of NaN."""
    if isinstance(like, Tensor):
        return torch.full_like(like, torch.nan)
    return replace(like, values=torch.full_like(like.values, torch.nan))


def _stacked(results: list[Any], types: tuple[str, ...], axes: tuple[str, ...]) -> Tensor | PatchingResult:
    """Results of sweeps on a leading axis; where keys and values have fewer heads, 0 for the others."""
    first = results[0]
    if isinstance(first, Tensor):
        return torch.stack(_padded(results, len(axes)))
    lead = int(first.has_metric_axis)
    values = [each.values.movedim(0, -1) if lead else each.values for each in results]
    tail = lead + (not first.reduced)
    stacked = torch.stack(_padded(values, len(axes), tail))
    cells = list(stacked.shape[: 1 + len(axes)])
    return PatchingResult(
        values=stacked.movedim(-1, 0) if lead else stacked,
        axis_names=["patch_type", *axes],
        index_df=make_df_from_ranges(cells, ["patch_type", *axes]),
        metric_names=first.metric_names,
        reduced=first.reduced,
        baseline=first.baseline,
        has_metric_axis=first.has_metric_axis,
        patch_type_names=list(types),
    )


def _padded(values: list[Tensor], n_axes: int, tail: int = 0) -> list[Tensor]:
    """With as many entries on the last of the swept axes as the first has."""
    last = n_axes - 1
    wide = values[0].shape[last]
    return [F.pad(each, (*[0, 0] * tail, 0, wide - each.shape[last])) for each in values]
