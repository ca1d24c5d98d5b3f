"""The short causal depthwise convolution on a GPU: y_t = b + sum_{tau=0}^{k-1} w_tau (.) x_{t-tau}.

One program computes T positions of D channels of one document. x is given with k - 1 positions of past before
the first, so position t of y reads t ... t + k - 1 of x; in its other taps a program finds what it has read
before in the cache. Backward, with g_t the gradient at y_t, by tiles of positions s of x:

    dx_s = sum_tau w_tau (.) g_{s+tau}        dw_tau = sum_t g_t (.) x_{t-tau}        db = sum_t g_t

the sums over t as one part a program, added up afterwards: no order of programs changes a bit.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .common import TL_DTYPES, accumulator, check_runnable, launch, on_device


@triton.jit
@no_type_check
def forward(
    x,
    weight,
    bias,
    y,
    length,
    channels,
    x_b,
    x_t,
    x_d,
    weight_d,
    weight_i,
    TAPS: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
):
    """Tap i of `weight` [channels, taps] multiplies position t + i of x: the current token's is the last."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * T + tl.arange(0, T)[:, None]
    d = tl.program_id(2) * D + tl.arange(0, D)[None, :]
    ok = (t < length) & (d < channels)
    y_td = tl.zeros([T, D], dtype=ACC)
    for i in tl.static_range(TAPS):
        w = tl.load(weight + d * weight_d + i * weight_i, mask=d < channels, other=0.0).to(ACC)
        x_td = tl.load(x + b * x_b + (t + i) * x_t + d * x_d, mask=ok, other=0.0).to(ACC)
        y_td = tl.fma(x_td, w, y_td)
    if bias is not None:
        y_td += tl.load(bias + d, mask=d < channels, other=0.0).to(ACC)
    tl.store(y + (b * length + t) * channels + d, y_td, mask=ok)


@triton.jit
@no_type_check
def backward(
    x,
    weight,
    grad,
    grad_x,
    parts,
    length,
    channels,
    x_b,
    x_t,
    x_d,
    weight_d,
    weight_i,
    TAPS: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
):
    """`parts` [program, taps + 1, channels]: dw by tap, and after them db, of this program's positions."""
    b = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1) * T + tl.arange(0, T)[:, None]
    d = tl.program_id(2) * D + tl.arange(0, D)[None, :]
    of_channel = d < channels
    grad += b * length * channels
    parts += (b * tl.num_programs(1) + tl.program_id(1)) * (TAPS + 1) * channels
    g = tl.load(grad + s * channels + d, mask=(s < length) & of_channel, other=0.0).to(ACC)
    dx = tl.zeros([T, D], dtype=ACC)
    for i in tl.static_range(TAPS):
        w = tl.load(weight + d * weight_d + i * weight_i, mask=of_channel, other=0.0).to(ACC)
        earlier = (s >= i) & (s - i < length) & of_channel
        dx = tl.fma(tl.load(grad + (s - i) * channels + d, mask=earlier, other=0.0).to(ACC), w, dx)
        x_td = tl.load(x + b * x_b + (s + i) * x_t + d * x_d, mask=(s < length) & of_channel, other=0.0).to(
            ACC
        )
        tl.store(parts + i * channels + d, tl.sum(g * x_td, 0)[None, :], mask=of_channel)
    tl.store(parts + TAPS * channels + d, tl.sum(g, 0)[None, :], mask=of_channel)
    padded = length + TAPS - 1
    tl.store(grad_x + (b * padded + s) * channels + d, dx, mask=(s < padded) & of_channel)


def triton_depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y [batch, pos, channel] of x [batch, past_and_pos, channel], weight [channel, 1, tap], bias [channel].

    Half precision is summed in float32; y has the dtype that torch would give x * weight.
    """
    check_runnable(x, weight, bias)
    return _DepthwiseConv.apply(x, weight[:, 0], bias)  # pyright: ignore[reportReturnType]


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        batch, padded, channels = x.shape
        taps = weight.shape[1]
        length = padded - taps + 1
        dtype = torch.promote_types(x.dtype, weight.dtype)
        y = x.new_empty(batch, length, channels, dtype=dtype)
        if y.numel():
            high, wide, options = _tile(length, channels, taps, accumulator(x, weight, bias))
            grid = batch, triton.cdiv(length, high), triton.cdiv(channels, wide)
            bias_1d = None if bias is None else bias.contiguous()
            with on_device(x):
                launch(forward, grid)(
                    x, weight, bias_1d, y, length, channels, *x.stride(), *weight.stride(), **options
                )
        ctx.save_for_backward(x, weight, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias = ctx.saved_tensors
        batch, padded, channels = x.shape
        taps = weight.shape[1]
        length, dtype = padded - taps + 1, accumulator(x, weight, bias)
        high, wide, options = _tile(padded, channels, taps, dtype)
        blocks = triton.cdiv(padded, high)
        make = torch.empty if grad.numel() else torch.zeros
        grad_x = make(x.shape, dtype=x.dtype, device=x.device)
        parts = make(batch * blocks, taps + 1, channels, dtype=dtype, device=x.device)
        if grad.numel():
            with on_device(x):
                launch(backward, (batch, blocks, triton.cdiv(channels, wide)))(
                    x,
                    weight,
                    grad.contiguous(),
                    grad_x,
                    parts,
                    length,
                    channels,
                    *x.stride(),
                    *weight.stride(),
                    **options,
                )
        sums = parts.sum(0)
        grad_bias = None if bias is None else sums[taps].to(bias.dtype)
        return grad_x, sums[:taps].t().to(weight.dtype), grad_bias


def _tile(length: int, channels: int, taps: int, dtype: torch.dtype) -> tuple[int, int, dict]:
    """Up to 32 positions of 64 channels, a run of memory of 128 bytes and more, 16 sums a thread."""
    high = min(32, triton.next_power_of_2(max(1, length)))
    wide = min(64, triton.next_power_of_2(channels))
    warps = min(4, max(1, high * wide // 512))
    return high, wide, {"TAPS": taps, "T": high, "D": wide, "ACC": TL_DTYPES[dtype], "num_warps": warps}
