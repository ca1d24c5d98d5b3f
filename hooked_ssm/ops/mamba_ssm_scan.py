"""The selective scan by the CUDA kernels of the mamba-ssm package, where that is installed.

They show nothing of what they compute, begin at the state 0, and have no gradient of the last state.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import Call, no_edits

MAX_D_STATE = 256  # of the kernels


def cannot(call: Call) -> str | None:
    """Why these kernels cannot compute this selective scan."""
    if call.dtype != torch.float32:
        return f"it computes in torch.float32, not in {call.dtype}"
    if "initial" in call.inputs:
        return "it has no initial state"
    if call.inputs["A"].shape[1] > MAX_D_STATE:
        return f"its states have at most {MAX_D_STATE} dimensions a channel, not {call.inputs['A'].shape[1]}"
    return no_edits(call)


def mamba_ssm_selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None = None, **edits: Any
) -> tuple[Tensor, Tensor]:
    """y and the last state. Raises in backward if a loss depends on the last state."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore

    # All but A in one dtype: half precision goes in as it is if all of it is.
    dtypes = {tensor.dtype for tensor in (x, dt, B, C)}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    u, delta, B, C = (_channels_first(tensor.to(dtype)) for tensor in (x, dt, B, C))
    y, last = selective_scan_fn(u, delta, A.float(), B, C, return_last_state=True)
    return y.transpose(1, 2).to(x.dtype), _WithoutGradient.apply(last)  # pyright: ignore[reportReturnType]


def _channels_first(tensor: Tensor) -> Tensor:
    """[batch, pos, (d_inner,) n] -> [batch, (d_inner,) n, pos]: a channel axis is one of groups there."""
    return tensor.movedim(1, -1).contiguous()


class _WithoutGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, last):
        return last.view_as(last)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError(
            "mamba-ssm has no gradient of the last state of a selective scan, and a loss depends on it: "
            'run it under use_backend("triton") or use_backend("torch").'
        )
