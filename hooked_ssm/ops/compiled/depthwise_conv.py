"""`depthwise_conv`, compiled: one pass, tap after tap on a row of channels. Backward as in the reference."""

import torch
from torch import Tensor

from hooked_ssm.ops.backends import in_one_dtype
from hooked_ssm.ops.depthwise_conv import ReferenceConv, taps_first

from .arithmetic import fma, kernel
from .threads import split


def numba_depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = torch.promote_types(x.dtype, weight.dtype)
    x, weight, bias = in_one_dtype(x, weight, bias)
    graph = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, weight, bias)
    )
    w = taps_first(weight)
    y = _CompiledConv.apply(x, w, bias) if graph else _forward(x, w, bias)
    return y.to(dtype)  # pyright: ignore[reportAttributeAccessIssue]


def _forward(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    batch, padded, channels = x.shape
    y = x.new_empty((batch, padded - len(w) + 1, channels))
    if y.numel():
        arrays = (x, w, w[0] if bias is None else bias)
        numpy = (tensor.detach().contiguous().numpy() for tensor in arrays)
        split(_run, batch, y.numel() * len(w), *numpy, bias is not None, y.numpy())
    return y


class _CompiledConv(ReferenceConv):
    @staticmethod
    def forward(ctx, x, w, bias):
        ctx.save_for_backward(x, w)
        ctx.has_bias = bias is not None
        return _forward(x, w, bias)


@kernel
def _run(first, last, x, w, bias, has_bias, y):
    """Parts are documents."""
    taps, channels = w.shape
    for b in range(first, last):
        for t in range(y.shape[1]):
            out = y[b, t]
            if has_bias:
                for c in range(channels):
                    out[c] = bias[c]
            else:
                for c in range(channels):
                    out[c] = 0
            for i in range(taps):
                earlier, w_i = x[b, t + i], w[i]
                for c in range(channels):
                    out[c] = fma(earlier[c], w_i[c], out[c])
