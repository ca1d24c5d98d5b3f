"""The selective scan, a block of documents and channels at a time, each with all positions (`grouped_scan`).

Documents and channels are apart from one another. So the states in hand stay in the processor's cache, and
none is kept for the backward pass, which computes a block again, and runs the total gradient lambda (see
linear_scan) through it in reverse. Blocks are [batch, pos, d_state, d_inner]: x, dt and y, which have no
d_state, broadcast along runs of memory. With a_t = exp(dt_t A), u_t = dt_t x_t, g_t the gradient at y_t, sums
over channels c, states n:

    lambda_t = C_t g_t + a_{t+1} lambda_{t+1}       p_t = a_t lambda_t h_{t-1}
    dC_t = sum_c h_t g_t      dB_t = sum_c lambda_t u_t      du_t = sum_n lambda_t B_t      dx_t = du_t dt_t
    ddt_t = sum_n p_t A + du_t x_t      dA = sum_t p_t dt_t      dinitial = a_0 lambda_0
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .grouped_scan import scan_after

CPU_BYTES = 2**21  # of a block's states; from half to four times this is alike
GPU_BYTES = 2**28  # where launches cost more than leaving the cache
LEAST_CHANNELS = 64  # of a block, if it is larger for it: short runs of memory cost more


def blocked_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None,
    block_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """y [batch, pos, d_inner] and the last state [batch, d_inner, d_state]; all arguments in one dtype.

    `block_bytes`, about how large a block's states are, changes rounding only.
    """
    block_bytes = block_bytes or (CPU_BYTES if x.device.type == "cpu" else GPU_BYTES)
    return _BlockedScan.apply(x, dt, A, B, C, initial, block_bytes)  # pyright: ignore[reportReturnType]


def by_state(tensor: Tensor) -> Tensor:
    """[batch, pos, (d_inner,) d_state] -> [batch, pos, d_state, d_inner or 1]."""
    return tensor.unsqueeze(3) if tensor.ndim == 3 else tensor.transpose(2, 3)


def read_states(states: Tensor, C: Tensor, out: Tensor) -> None:
    """out = sum_n states C; states [batch, pos, d_state, d_inner], C [batch, pos, d_state, d_inner or 1].

    A sum of slices and not a matrix product, whose rounding would depend on how many positions it is given.
    """
    first, *rest = zip(states.unbind(2), C.unbind(2), strict=True)
    torch.mul(*first, out=out)
    for state, c in rest:
        out.addcmul_(state, c)


def sum_channels(channels: Tensor, states: Tensor) -> Tensor:
    """sum_c of [batch, pos, d_inner] and [batch, pos, d_state, d_inner]: [batch, pos, d_state]."""
    # Row vector times matrix: the other way about is the same sum, and up to ten times slower on a CPU.
    return (channels.unsqueeze(2) @ states.mT).squeeze(2)


class _BlockedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, initial, block_bytes):
        ctx.save_for_backward(x, dt, A, B, C, initial)
        ctx.block_bytes = block_bytes
        ctx.set_materialize_grads(False)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        last = x.new_empty(len(x), *A.shape)
        for part, decay, states in _blocks(2, x, A, block_bytes):
            _fill(part, decay, states, x, dt, A, B, initial)
            read_states(states, part.of_state(C), out=part.of_channel(y))
            part.one(last).copy_(states[:, -1])
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_last):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, dt, A, B, C, initial = ctx.saved_tensors
        grad_y = torch.zeros_like(x) if grad_y is None else grad_y
        grad_u, grad_dt = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
        grad_A, grad_B, grad_C = (torch.zeros_like(tensor) for tensor in (A, B, C))
        grad_initial = None if initial is None else torch.empty_like(initial)
        for part, decay, states, lam in _blocks(3, x, A, ctx.block_bytes):
            _fill(part, decay, states, x, dt, A, B, initial)
            x_c, dt_c, gy = map(part.of_channel, (x, dt, grad_y))
            torch.mul(gy.unsqueeze(2), part.of_state(C), out=lam)
            if grad_last is not None:
                lam[:, -1] += part.one(grad_last)
            scan_after(lam[:, -1], decay[:, 1:], lam[:, :-1], lam[:, :-1], backwards=True)
            part.add(grad_C, gy, states)
            part.add(grad_B, dt_c * x_c, lam)
            read_states(lam, part.of_state(B), out=part.of_channel(grad_u))

            decay *= lam  # a_t lambda_t
            if initial is None or grad_initial is None:
                decay[:, 0].zero_()
            else:
                part.one(grad_initial).copy_(decay[:, 0])
                decay[:, 0] *= part.one(initial)
            decay[:, 1:] *= states[:, :-1]  # p_t
            A_n = A[part.channels].t()
            read_states(decay, A_n.expand(1, 1, *A_n.shape), out=part.of_channel(grad_dt))
            grad_A[part.channels] += decay.mul_(dt_c.unsqueeze(2)).sum((0, 1)).t()
        grad_dt.addcmul_(grad_u, x)
        return grad_u.mul_(dt), grad_dt, grad_A, grad_B, grad_C, grad_initial, None


class _Part(NamedTuple):
    """Some documents' channels, and tensors of them alone."""

    docs: slice
    channels: slice

    def of_channel(self, x: Tensor) -> Tensor:
        """[batch, pos, d_inner]"""
        return x[self.docs, :, self.channels]

    def of_state(self, B: Tensor) -> Tensor:
        """B or C, as [batch, pos, d_state, d_inner or 1]."""
        B = by_state(B[self.docs])
        return B[..., self.channels] if B.shape[3] > 1 else B

    def one(self, state: Tensor) -> Tensor:
        """[batch, d_inner, d_state] as [batch, d_state, d_inner]."""
        return state[self.docs, self.channels].transpose(1, 2)

    def add(self, grad: Tensor, channelwise: Tensor, states: Tensor) -> None:
        """To the gradient of B or C, what comes from here."""
        if grad.ndim == 3:
            grad[self.docs] += sum_channels(channelwise, states)
        else:
            self.of_state(grad).addcmul_(channelwise.unsqueeze(2), states)


def _blocks(count: int, x: Tensor, A: Tensor, block_bytes: int) -> Iterator[Any]:
    """The parts, each with memory [batch, pos, d_state, d_inner] for `count` tensors, always the same."""
    (batch, pos, d_inner), d_state = x.shape, A.shape[1]
    at_once = block_bytes // max(1, pos * d_state * x.element_size())
    docs = min(batch, max(1, at_once // max(1, d_inner)))
    channels = min(d_inner, max(LEAST_CHANNELS, at_once))
    memory = x.new_empty(count, docs * pos * d_state * channels)
    for doc, channel in product(range(0, batch, docs or 1), range(0, d_inner, channels or 1)):
        part = _Part(slice(doc, doc + docs), slice(channel, channel + channels))
        some, _, wide = part.of_channel(x).shape
        shape = some, pos, d_state, wide
        yield part, *(each[: math.prod(shape)].view(shape) for each in memory)


def _fill(
    part: _Part,
    decay: Tensor,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    initial: Tensor | None,
) -> None:
    dt = part.of_channel(dt)
    torch.mul(dt.unsqueeze(2), A[part.channels].t(), out=decay).exp_()
    torch.mul((dt * part.of_channel(x)).unsqueeze(2), part.of_state(B), out=states)
    if initial is not None:
        states[:, 0].addcmul_(decay[:, 0], part.one(initial))
    scan_after(states[:, 0], decay[:, 1:], states[:, 1:], states[:, 1:])
