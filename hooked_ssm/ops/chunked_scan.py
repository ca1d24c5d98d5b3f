"""The selective scan, a chunk of positions at a time: the states in hand stay in the processor's cache.

Chunks are [time, batch, d_state, d_inner], d_inner contiguous: then every position is one run of memory, and
x, dt and y, which have no d_state, broadcast along it. Only the state before each chunk is kept for the
backward pass, which computes the chunk again and runs the total gradient lambda (see linear_scan) through it
in reverse. With a_t = exp(dt_t A), u_t = dt_t x_t, g_t the gradient at y_t, sums over channels c, states n:

    lambda_t = C_t g_t + a_{t+1} lambda_{t+1}       p_t = a_t lambda_t h_{t-1}
    dC_t = sum_c h_t g_t      dB_t = sum_c lambda_t u_t      du_t = sum_n lambda_t B_t      dx_t = du_t dt_t
    ddt_t = sum_n p_t A + du_t x_t      dA = sum_t p_t dt_t      dinitial = a_0 lambda_0
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 2**20  # of states; the optimum is flat between half and one and a half times this


def chunked_selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """y [batch, pos, d_inner] and the last state [batch, d_inner, d_state]; all arguments in one dtype.

    `chunk` is the number of positions in a chunk; it changes no number.
    """
    chunk = chunk or chunk_length(x.shape[0] * A.numel() * x.element_size())
    return _ChunkedScan.apply(x, dt, A, B, C, initial, chunk, torch.is_grad_enabled())  # pyright: ignore


def chunk_length(bytes_a_position: int) -> int:
    """How many positions' states stay in the processor's cache."""
    return max(1, CHUNK_BYTES // max(1, bytes_a_position))


def make_decay(dt: Tensor, A_nd: Tensor, out: Tensor) -> None:
    """out = exp(dt A), for dt [time, batch, d_inner] and A [d_state, d_inner]."""
    chunk = chunk_length(out[0].numel() * out.element_size())
    for some_dt, some_out in zip(dt.split(chunk), out.split(chunk)):
        torch.mul(some_dt.unsqueeze(2), A_nd, out=some_out).exp_()


def read_states(states: Tensor, C: Tensor, out: Tensor) -> None:
    """out = sum_n states C; states [time, batch, d_state, d_inner], C [time, batch, d_state, d_inner or 1].

    A sum of slices and not a matrix product, whose rounding would depend on how many positions it is given.
    """
    first, *rest = zip(states.unbind(2), C.unbind(2), strict=True)
    torch.mul(*first, out=out)
    for state, c in rest:
        out.addcmul_(state, c)


def sum_channels(channels: Tensor, states: Tensor) -> Tensor:
    """sum_c of [time, batch, d_inner] and [time, batch, d_state, d_inner]: [time, batch, d_state]."""
    # Row vector times matrix: the other way about is the same sum, and up to ten times slower on a CPU.
    return (channels.unsqueeze(2) @ states.mT).squeeze(2)


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, initial, chunk, grad_enabled):
        batch, length, d_inner = x.shape
        A_nd = A.t().contiguous()
        if initial is None:
            h = x.new_zeros(batch, A.shape[1], d_inner)
        else:
            h = initial.transpose(1, 2).contiguous()
        buffer = x.new_empty(2, min(chunk, length), *h.shape)
        keep = grad_enabled and any(ctx.needs_input_grad)
        starts = x.new_empty(-(-length // chunk) if keep else 1, *h.shape)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)

        u = (dt * x).transpose(0, 1)
        dt_t, B_t, C_t, y_t = (tensor.transpose(0, 1) for tensor in (dt, B, C, y))
        for k, begin in enumerate(range(0, length, chunk)):
            span = slice(begin, min(begin + chunk, length))
            h = starts[k if keep else 0].copy_(h)
            decay, states = buffer[:, : span.stop - begin]
            make_decay(dt_t[span], A_nd, out=decay)
            torch.mul(u[span].unsqueeze(2), B_t[span].unsqueeze(3), out=states)
            h = _scan_in_place(decay, states, h)
            read_states(states, C_t[span].unsqueeze(3), out=y_t[span])
        if keep:
            ctx.save_for_backward(x, dt, A_nd, B, C, starts)
            ctx.chunk = chunk
            ctx.set_materialize_grads(False)
        return y, h.transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_last):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, dt, A_nd, B, C, starts = ctx.saved_tensors
        length = x.shape[1]
        if grad_y is None:
            grad_y = torch.zeros_like(x)
        carry = torch.zeros_like(starts[0]) if grad_last is None else grad_last.transpose(1, 2).contiguous()
        buffer = x.new_empty(3, min(ctx.chunk, length), *carry.shape)
        grad_x, grad_dt, grad_B, grad_C = (
            torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, dt, B, C)
        )
        grad_A = torch.zeros_like(A_nd)

        u = (dt * x).transpose(0, 1)
        dt_t, B_t, C_t, gy_t, gdt_t, gB_t, gC_t, gu_t = (
            tensor.transpose(0, 1) for tensor in (dt, B, C, grad_y, grad_dt, grad_B, grad_C, grad_x)
        )
        for k in reversed(range(len(starts))):
            begin = k * ctx.chunk
            span = slice(begin, min(begin + ctx.chunk, length))
            decay, states, total = buffer[:, : span.stop - begin]
            make_decay(dt_t[span], A_nd, out=decay)
            torch.mul(u[span].unsqueeze(2), B_t[span].unsqueeze(3), out=states)
            _scan_in_place(decay, states, starts[k])
            torch.mul(gy_t[span].unsqueeze(2), C_t[span].unsqueeze(3), out=total)
            gC_t[span] = sum_channels(gy_t[span], states)

            for a, lam in zip(reversed(decay.unbind(0)), reversed(total.unbind(0)), strict=True):
                lam.add_(carry)
                carry = a.mul_(lam)  # decay now holds a_t lambda_t
            carry = carry.clone()

            gu_t[span] = (B_t[span].unsqueeze(2) @ total).squeeze(2)
            gB_t[span] = sum_channels(u[span], total)
            decay[0].mul_(starts[k])
            decay[1:].mul_(states[:-1])  # and now p_t
            read_states(decay, A_nd.expand(1, 1, *A_nd.shape), out=gdt_t[span])
            grad_A += decay.mul_(dt_t[span].unsqueeze(2)).sum((0, 1))

        grad_dt.addcmul_(grad_x, x)  # grad_x holds du so far
        grad_x.mul_(dt)
        grad_initial = carry.transpose(1, 2).contiguous() if ctx.needs_input_grad[5] else None
        return grad_x, grad_dt, grad_A.t(), grad_B, grad_C, grad_initial, None, None


def _scan_in_place(decay: Tensor, states: Tensor, h: Tensor) -> Tensor:
    """Turns `states`, holding the writes, into the states after `h`; returns the last."""
    for a, state in zip(decay.unbind(0), states.unbind(0), strict=True):
        h = state.addcmul_(a, h)
    return h
