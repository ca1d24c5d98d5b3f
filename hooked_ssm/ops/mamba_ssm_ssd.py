"""Linear attention with a decay a head by the Triton kernels of the mamba-ssm package, where installed.

Theirs is S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T: for A = -1, dt_t = -log a_t and x_t = v_t / dt_t it is
ours. A decay of 1 counts as 1 - SMALLEST, which float32 cannot tell from it. They multiply float32 numbers as
tf32 ones, and show nothing of what they compute between the inputs and the last state.
"""

from typing import Any

import torch
from torch import Tensor

from .backends import Call, no_edits

SMALLEST = 2.0**-25
CHUNK = 256  # as in their Mamba2


def cannot(call: Call) -> str | None:
    """Why these kernels cannot compute this linear attention."""
    if call.dtype != torch.float32:
        return f"it computes in torch.float32, not in {call.dtype}"
    if "log_decay" not in call.inputs:
        return "it has no form without decays"
    if call.inputs["log_decay"].ndim == 4:
        return "it has decays by head, not by channel"
    return no_edits(call)


def mamba_ssm_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial: Tensor | None,
    *,
    chunk: int | None = None,
    **edits: Any,
) -> tuple[Tensor, Tensor]:
    """o and the last state. `chunk` is theirs to choose."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # pyright: ignore

    rate = -log_decay.float()
    dt = rate + (rate.clamp(min=SMALLEST) - rate).detach()
    dtypes = {tensor.dtype for tensor in (q, k, v)}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    x = (v / dt.unsqueeze(-1)).to(dtype).contiguous()
    o, last = mamba_chunk_scan_combined(
        x,
        dt,
        -torch.ones(v.shape[2], device=v.device),
        k.to(dtype).contiguous(),
        q.to(dtype).contiguous(),
        chunk_size=CHUNK,
        initial_states=None if initial is None else initial.float().mT.contiguous(),
        return_final_states=True,
    )
    return o.to(v.dtype), last.float().mT
