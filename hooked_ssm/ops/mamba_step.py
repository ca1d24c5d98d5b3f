"""One position of a Mamba: for documents that are continued token by token.

In the letters of `mixers.mamba`, u the input, `inputs` the last d_conv - 1 inputs of the convolution and x:

    x, gate  = in_proj u
    x        = SiLU(conv_b + sum_i conv_w[i] (.) inputs[i])
    low,B,C  = x_proj x                                          each over its root mean square, if with eps
    dt       = softplus(dt_w low + dt_b)
    h        = exp(dt A) (.) h + (dt x) B^T                      A = -exp(A_log)
    out      = out_proj ((h C + D (.) x) (.) SiLU(gate))

One by one, these take longer than reading the weights does: each is microseconds of work, for which its code
and all that it looks up comes from memory again, as the weights push it out of the caches. There is no form
with hooks, and none with a graph.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .backends import call_of, implementation, in_one_dtype


class StepWeights(NamedTuple):
    in_proj: Float[Tensor, "two_d_inner d_model"]
    conv_w: Float[Tensor, "d_inner 1 tap"]
    conv_b: Float[Tensor, " d_inner"]
    x_proj: Float[Tensor, "rank_and_B_and_C d_inner"]
    dt_w: Float[Tensor, "d_inner rank"]
    dt_b: Float[Tensor, " d_inner"]
    A_log: Float[Tensor, "d_inner d_state"]
    D: Float[Tensor, " d_inner"]
    out_proj: Float[Tensor, "d_model d_inner"]


class Stepped(NamedTuple):
    """The output, and what the next position needs."""

    out: Float[Tensor, "batch d_model"]
    conv: Float[Tensor, "batch past d_inner"]
    ssm: Float[Tensor, "batch d_inner d_state"]


def mamba_step(
    u: Float[Tensor, "batch d_model"],
    weights: StepWeights,
    conv: Float[Tensor, "batch past d_inner"],
    ssm: Float[Tensor, "batch d_inner d_state"],
    eps: float | None = None,
) -> Stepped:
    """conv: the last d_conv - 1 inputs of the convolution. ssm: h. eps: of the norms of low, B and C."""
    _check_shapes(u, weights, conv, ssm)
    inputs = {"u": u, "conv": conv, "ssm": ssm, **weights._asdict()}
    return implementation(call_of("mamba_step", inputs))(u, weights, conv, ssm, eps)


def _check_shapes(u: Tensor, weights: StepWeights, conv: Tensor, ssm: Tensor) -> None:
    (batch, d_model), (d_inner, _, taps) = u.shape, weights.conv_w.shape
    (_, rank), (_, d_state) = weights.dt_w.shape, weights.A_log.shape
    channels = (d_inner,)
    wanted = (
        *((2 * d_inner, d_model), (d_inner, 1, taps), channels, (rank + 2 * d_state, d_inner)),
        *((d_inner, rank), channels, (d_inner, d_state), channels, (d_model, d_inner)),
        *((batch, taps - 1, d_inner), (batch, d_inner, d_state)),
    )
    got = tuple(tensor.shape for tensor in (*weights, conv, ssm))
    if got != wanted:
        names = (*StepWeights._fields, "conv", "ssm")
        raise ValueError(
            "; ".join(
                f"{name} must be {list(should)} beside u {list(u.shape)}, got {list(shape)}"
                for name, should, shape in zip(names, wanted, got, strict=True)
                if shape != should
            )
        )


def torch_mamba_step(
    u: Tensor, weights: StepWeights, conv: Tensor, ssm: Tensor, eps: float | None
) -> Stepped:
    """The equations."""
    dtype = u.dtype
    u, conv, ssm, *rest = in_one_dtype(u, conv, ssm, *weights)
    w = StepWeights(*rest)
    x, gate = F.linear(u, w.in_proj).chunk(2, dim=-1)
    inputs = torch.cat([conv, x.unsqueeze(1)], dim=1)
    x = F.silu((inputs * w.conv_w[:, 0].t()).sum(1) + w.conv_b)
    rank, d_state = w.dt_w.shape[1], w.A_log.shape[1]
    low, B, C = F.linear(x, w.x_proj).split([rank, d_state, d_state], dim=-1)
    if eps is not None:
        low, B, C = (F.rms_norm(part, part.shape[-1:], eps=eps) for part in (low, B, C))
    dt = F.softplus(F.linear(low, w.dt_w, w.dt_b))
    write = (dt * x).unsqueeze(2) * B.unsqueeze(1)
    h = (dt.unsqueeze(2) * -w.A_log.exp()).exp() * ssm + write
    z = ((h @ C.unsqueeze(2)).squeeze(2) + w.D * x) * F.silu(gate)
    return Stepped(F.linear(z, w.out_proj).to(dtype), inputs[:, 1:].to(dtype), h)
