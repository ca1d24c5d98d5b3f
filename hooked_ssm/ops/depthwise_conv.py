"""The short causal depthwise convolution: y_t = b + sum_{tau=0}^{k-1} w_tau (.) x_{t-tau}."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import call_of, implementation


def depthwise_conv(
    x: Float[Tensor, "batch past_and_pos channel"],
    weight: Float[Tensor, "channel 1 tap"],
    bias: Float[Tensor, " channel"] | None,
) -> Float[Tensor, "batch pos channel"]:
    """Outputs at all but the first k - 1 positions of x, which are the past. weight[..., -1] is w_0."""
    (channels, _, taps), (_, length, width) = weight.shape, x.shape
    if width != channels or length < taps:
        raise ValueError(
            f"a convolution of {channels} channels and {taps} taps needs as many channels and positions, "
            f"got {list(x.shape)}."
        )
    call = call_of("depthwise_conv", {"x": x, "weight": weight, "bias": bias})
    return implementation(call)(x, weight, bias)


def torch_depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return ReferenceConv.apply(x, taps_first(weight), bias)  # pyright: ignore[reportReturnType]


def taps_first(weight: Float[Tensor, "channel 1 tap"]) -> Float[Tensor, "tap channel"]:
    return weight[:, 0].t().contiguous()


class ReferenceConv(torch.autograd.Function):
    """Sums in place, forward and backward; weights [tap, channel], the current token's last."""

    @staticmethod
    def forward(ctx, x, w, bias):
        taps = len(w)
        length = x.shape[1] - taps + 1
        y = x[:, taps - 1 :] * w[-1]
        for i in range(taps - 1):
            y.addcmul_(x[:, i : i + length], w[i])
        if bias is not None:
            y += bias
        ctx.save_for_backward(x, w)
        ctx.has_bias = bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, w = ctx.saved_tensors
        taps, length = len(w), grad.shape[1]
        grad_x, grad_w = torch.zeros_like(x), torch.empty_like(w)
        for i in range(taps):
            grad_x[:, i : i + length].addcmul_(grad, w[i])
            torch.sum(grad * x[:, i : i + length], dim=(0, 1), out=grad_w[i])
        return grad_x, grad_w, grad.sum((0, 1)) if ctx.has_bias else None
