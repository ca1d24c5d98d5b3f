"""Sweeps over what TransformerLens has no sweep for: what is inside mixers.

All take `(model, corrupted_tokens, clean_cache, metric)` and the options of `patch_sweep`.

By layer and position unless `index_axis_names` says otherwise: any axes that the hook declares, "head", and
"channel" with `groups={"channel": 8}`. `get_act_patch_state` replaces the state, and what comes after grows
out of the replacement; with `read_only=True` only what is read at that position changes.

Most filters, and the decays of H3, do not depend on the input: then the cache of a clean run has nothing to
put back, and the sweep raises ValueError. Put other values into it (zeros, to knock lags out).
"""

from functools import partial

from hooked_ssm.patching.sweep import patch_sweep

get_act_patch_conv_in = partial(patch_sweep, activation_name="conv_in")
get_act_patch_conv = partial(patch_sweep, activation_name="conv")
get_act_patch_conv_taps = partial(
    patch_sweep, activation_name="conv_taps", index_axis_names=("layer", "pos", "tap")
)
get_act_patch_x = partial(patch_sweep, activation_name="x")
get_act_patch_gate = partial(patch_sweep, activation_name="gate")
get_act_patch_dt = partial(patch_sweep, activation_name="ssm_dt")
get_act_patch_B = partial(patch_sweep, activation_name="ssm_B")
get_act_patch_C = partial(patch_sweep, activation_name="ssm_C")
get_act_patch_beta = partial(patch_sweep, activation_name="beta")
get_act_patch_decay = partial(patch_sweep, activation_name="ssm_decay")
get_act_patch_write = partial(patch_sweep, activation_name="ssm_write")
get_act_patch_state = partial(patch_sweep, activation_name="ssm_state")
get_act_patch_y = partial(patch_sweep, activation_name="y")
get_act_patch_long_conv = partial(patch_sweep, activation_name="long_conv")
get_act_patch_filter = partial(patch_sweep, activation_name="filter", index_axis_names=("layer", "lag"))
