"""Activation patching: TransformerLens's functions under their own names, and sweeps over any hook and axes.

    logits, cache = model.run_with_cache(clean)
    patching.get_act_patch_resid_pre(model, corrupted, cache, metric)                      # [layer, pos]
    patching.get_act_patch_conv_taps(model, corrupted, cache, metric)                      # [layer, pos, tap]
    patching.patch_sweep(model, corrupted, cache, metric, "ssm_state", ("layer", "pos", "head"))

One number a cell: the metric of the corrupted run with that part of the activation from the clean run. Cells
are stacked on the batch axis and started at the layer, and near the position, where they differ; what differs
nowhere is not run, and logits are made where the metric reads them. Works on any `HookedRootModule` with the
hooks named; those that cannot start at a layer, such as TransformerLens's bridges, are run from the tokens.
"""

from hooked_ssm.patching.direct_path import (
    get_act_patch_direct_path,
    get_act_patch_direct_path_all_sources,
)
from hooked_ssm.patching.generic import generic_activation_patch
from hooked_ssm.patching.mixer_sweeps import (
    get_act_patch_B,
    get_act_patch_beta,
    get_act_patch_C,
    get_act_patch_conv,
    get_act_patch_conv_in,
    get_act_patch_conv_taps,
    get_act_patch_decay,
    get_act_patch_dt,
    get_act_patch_filter,
    get_act_patch_gate,
    get_act_patch_long_conv,
    get_act_patch_state,
    get_act_patch_write,
    get_act_patch_x,
    get_act_patch_y,
)
from hooked_ssm.patching.sweep import patch_sweep
from hooked_ssm.patching.transformer_lens_sweeps import (
    get_act_patch_attn_head_all_pos_every,
    get_act_patch_attn_head_by_pos_every,
    get_act_patch_attn_head_k_all_pos,
    get_act_patch_attn_head_k_by_pos,
    get_act_patch_attn_head_out_all_pos,
    get_act_patch_attn_head_out_by_pos,
    get_act_patch_attn_head_pattern_all_pos,
    get_act_patch_attn_head_pattern_by_pos,
    get_act_patch_attn_head_pattern_dest_src_pos,
    get_act_patch_attn_head_q_all_pos,
    get_act_patch_attn_head_q_by_pos,
    get_act_patch_attn_head_v_all_pos,
    get_act_patch_attn_head_v_by_pos,
    get_act_patch_attn_out,
    get_act_patch_block_every,
    get_act_patch_mlp_out,
    get_act_patch_resid_mid,
    get_act_patch_resid_pre,
)

__all__ = [
    "patch_sweep",
    "generic_activation_patch",
    "get_act_patch_resid_pre",
    "get_act_patch_resid_mid",
    "get_act_patch_attn_out",
    "get_act_patch_mlp_out",
    "get_act_patch_block_every",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_q_by_pos",
    "get_act_patch_attn_head_k_by_pos",
    "get_act_patch_attn_head_v_by_pos",
    "get_act_patch_attn_head_by_pos_every",
    "get_act_patch_attn_head_out_all_pos",
    "get_act_patch_attn_head_q_all_pos",
    "get_act_patch_attn_head_k_all_pos",
    "get_act_patch_attn_head_v_all_pos",
    "get_act_patch_attn_head_all_pos_every",
    "get_act_patch_attn_head_pattern_all_pos",
    "get_act_patch_attn_head_pattern_by_pos",
    "get_act_patch_attn_head_pattern_dest_src_pos",
    "get_act_patch_direct_path",
    "get_act_patch_direct_path_all_sources",
    "get_act_patch_conv_in",
    "get_act_patch_conv",
    "get_act_patch_conv_taps",
    "get_act_patch_x",
    "get_act_patch_gate",
    "get_act_patch_dt",
    "get_act_patch_B",
    "get_act_patch_C",
    "get_act_patch_beta",
    "get_act_patch_decay",
    "get_act_patch_write",
    "get_act_patch_state",
    "get_act_patch_y",
    "get_act_patch_long_conv",
    "get_act_patch_filter",
]
