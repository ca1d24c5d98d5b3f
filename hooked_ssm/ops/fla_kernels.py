"""The delta rules and linear attention by the Triton kernels of flash-linear-attention, where installed.

They show nothing of what they compute between the inputs and the last state. They multiply float32 numbers as
tf32 ones, and half precision as it is.
"""

from typing import Any

import torch
from torch import Tensor

from .backends import Call, common_dtype, no_edits

MOST_KEYS = 256  # of their kernels


def cannot(call: Call) -> str | None:
    """Why these kernels cannot compute this delta rule or linear attention."""
    if call.dtype != torch.float32:
        return f"it computes in torch.float32, not in {call.dtype}"
    if call.inputs["k"].shape[-1] > MOST_KEYS:
        return f"it takes d_key up to {MOST_KEYS}, got {call.inputs['k'].shape[-1]}"
    return no_edits(call)


def fla_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial: Tensor | None,
    *,
    chunk: int | None = None,
    **edits: Any,
) -> tuple[Tensor, Tensor]:
    """o and the last state. `chunk` is theirs to choose."""
    from fla.ops.delta_rule import chunk_delta_rule  # pyright: ignore[reportMissingImports]
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # pyright: ignore[reportMissingImports]

    q, k, v_in = _in_one_dtype(q, k, v)
    state = _state(initial)
    if log_decay is None and v_in.dtype != torch.float32:
        o, last = chunk_delta_rule(q, k, v_in, beta.to(v_in.dtype), **state)
    else:  # theirs without decays has no float32
        log_decay = torch.zeros_like(beta, dtype=torch.float32) if log_decay is None else log_decay.float()
        o, last = chunk_gated_delta_rule(q, k, v_in, log_decay, beta, **state)
    return o.to(v.dtype), last


def fla_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial: Tensor | None,
    *,
    chunk: int | None = None,
    **edits: Any,
) -> tuple[Tensor, Tensor]:
    """o and the last state. `chunk` is theirs to choose."""
    from fla.ops.gla import chunk_gla  # pyright: ignore[reportMissingImports]
    from fla.ops.simple_gla import chunk_simple_gla  # pyright: ignore[reportMissingImports]

    per_group = v.shape[2] // k.shape[2]
    if per_group > 1:
        q, k = (x.repeat_interleave(per_group, dim=2) for x in (q, k))
    q, k, v_in = _in_one_dtype(q, k, v)
    attend = chunk_gla if log_decay is not None and log_decay.ndim == 4 else chunk_simple_gla
    o, last = attend(q, k, v_in, None if log_decay is None else log_decay.float(), **_state(initial))
    return o.to(v.dtype), last


def _in_one_dtype(*tensors: Tensor) -> list[Tensor]:
    """Dense, in half precision if all are in the same, else in float32."""
    dtypes = {tensor.dtype for tensor in tensors}
    dtype = dtypes.pop() if len(dtypes) == 1 else common_dtype(tensors)
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def _state(initial: Tensor | None) -> dict[str, object]:
    """The arguments that all of theirs have. The queries are not to be scaled."""
    initial = None if initial is None else initial.float().contiguous()
    return {"scale": 1.0, "initial_state": initial, "output_final_state": True}
