"""The formats by the `model_type` of their configs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.loading import fla, gpt2, gpt_neox, mamba_ssm, transformers_mamba
from hooked_ssm.loading.plan import Plan

MakePlan = Callable[[Mapping[str, Any]], Plan]

FORMATS: dict[str, MakePlan] = {
    "mamba": transformers_mamba.mamba,
    "falcon_mamba": transformers_mamba.falcon_mamba,
    "mamba2": transformers_mamba.mamba2,
    "gpt2": gpt2.gpt2,
    "gpt_neox": gpt_neox.gpt_neox,
    "delta_net": fla.delta_net,
    "gated_deltanet": fla.gated_delta_net,
    "gla": fla.gla,
}
SUPPORTED = [*FORMATS, "mamba_ssm (a config with d_model, n_layer and ssm_cfg)", "hooked_ssm"]


def plan_for(values: Mapping[str, Any], dtype: torch.dtype | None, options: dict[str, Any]) -> Plan:
    """The plan for a source with this config. Raises ValueError for an architecture that is not supported.

    options: fields of our config that are the user's to choose.
    """
    kind = values.get("model_type")
    if kind in (None, "") and {"d_model", "n_layer"} <= values.keys():
        make = mamba_ssm.mamba_ssm
    elif kind in FORMATS:
        make = FORMATS[kind]
    else:
        raise ValueError(
            f"architecture {kind or values.get('architectures')!r} is not supported; supported are: "
            f"{', '.join(SUPPORTED)}."
        )
    plan = make(values)
    if dtype in (torch.float16, torch.bfloat16) and plan.wide_residual:
        raise ValueError(
            f"residual_in_fp32=True cannot be honoured with dtype={dtype}: a HookedSSM's residual "
            "stream has the dtype of its weights. Load it with dtype=torch.float32."
        )
    if "n_ctx" in options and plan.cfg.positional_embedding_type == "standard":
        raise ValueError(f"n_ctx is {plan.cfg.n_ctx}, the number of learned positions: it cannot be chosen.")
    if "n_heads" in options and not plan.free_heads:
        raise ValueError(f"n_heads is {plan.cfg.n_heads}, the heads of the mixer: it cannot be chosen.")
    if "n_heads" in options:
        options = {**options, "d_head": -1}  # follows from n_heads
    cfg = HookedSSMConfig.from_json({**plan.cfg.to_json(), **options})
    if dtype is not None:
        cfg.dtype = dtype
    return replace(plan, cfg=cfg)
