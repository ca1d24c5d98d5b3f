"""Mamba's selective scan. Gu & Dao (2023), arXiv:2312.00752, Algorithm 2.

Per channel c and state dimension n, with step dt, input x, and B, C depending on the input too:

    h_t[c, n] = exp(dt_t[c] A[c, n]) h_{t-1}[c, n] + dt_t[c] x_t[c] B_t[n]         decay, write
    y_t[c]    = sum_n h_t[c, n] C_t[n]                                             read

This is the operator, and its reference form in torch. That has two paths, the same numbers to the last bit:
the fast path holds one chunk of states at a time; the explicit path, taken when decays, writes or states are
asked for, holds them all.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import call_of, implementation, in_one_dtype
from .chunked_scan import chunked_selective_scan, make_decay, read_states, sum_channels
from .linear_scan import linear_scan
from .state_edit import check_edited, scan_with_edits

Edit = Callable[[Tensor], object]


def selective_scan(
    x: Float[Tensor, "batch pos d_inner"],
    dt: Float[Tensor, "batch pos d_inner"],
    A: Float[Tensor, "d_inner d_state"],
    B: Float[Tensor, "batch pos d_state"] | Float[Tensor, "batch pos d_inner d_state"],
    C: Float[Tensor, "batch pos d_state"] | Float[Tensor, "batch pos d_inner d_state"],
    initial: Float[Tensor, "batch d_inner d_state"] | None = None,
    *,
    edit_decay: Edit | None = None,
    edit_write: Edit | None = None,
    edit_state: Edit | None = None,
) -> tuple[Float[Tensor, "batch pos d_inner"], Float[Tensor, "batch d_inner d_state"]]:
    """The reads y and the state after the last position.

    `edit_decay`, `edit_write` and `edit_state` are each handed their quantity, a fresh tensor
    [batch, pos, d_inner, d_state], and what they return (None: what they were handed) is computed with from
    there on; for states see `scan_with_edits`. Half precision is computed in float32: y comes back in the
    dtype of x, the last state in float32.
    """
    _check_shapes(x, dt, A, B, C, initial)
    inputs = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "initial": initial}
    call = call_of("selective_scan", inputs, decay=edit_decay, write=edit_write, state=edit_state)
    run = implementation(call)
    return run(x, dt, A, B, C, initial, edit_decay=edit_decay, edit_write=edit_write, edit_state=edit_state)


def torch_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None,
    *,
    edit_decay: Edit | None,
    edit_write: Edit | None,
    edit_state: Edit | None,
) -> tuple[Tensor, Tensor]:
    """The reference form: a loop over positions, in Python."""
    y_dtype = x.dtype
    x, dt, A, B, C, initial = in_one_dtype(x, dt, A, B, C, initial)
    shared = B.ndim == 3 and C.ndim == 3
    if shared and edit_decay is None and edit_write is None and edit_state is None:
        y, last_state = chunked_selective_scan(x, dt, A, B, C, initial)
        return y.to(y_dtype), last_state

    decay = _edited("decay", _Decay.apply(dt, A), edit_decay)
    u = (dt * x).transpose(0, 1).unsqueeze(2)
    write = _from_time_major(u.contiguous() * _time_major(B).contiguous())
    write = _edited("write", write, edit_write)
    if initial is not None:
        initial = initial.transpose(1, 2).contiguous().transpose(1, 2)
    if edit_state is None:
        states = linear_scan(decay, write, initial)
    else:
        states = scan_with_edits(decay, write, edit_state, initial)
    return _Read.apply(states, C).to(y_dtype), states[:, -1].clone(memory_format=torch.contiguous_format)  # pyright: ignore


def _check_shapes(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None) -> None:
    if x.ndim != 3 or A.ndim != 2 or x.shape[1] == 0:
        raise ValueError(
            "x must be [batch, pos, d_inner] with at least one position and A [d_inner, d_state], "
            f"got {tuple(x.shape)} and {tuple(A.shape)}."
        )
    (batch, pos, d_inner), d_state = x.shape, A.shape[1]
    wanted = {
        "dt": (dt, [(batch, pos, d_inner)]),
        "A": (A, [(d_inner, d_state)]),
        "B": (B, [(batch, pos, d_state), (batch, pos, d_inner, d_state)]),
        "C": (C, [(batch, pos, d_state), (batch, pos, d_inner, d_state)]),
    }
    if initial is not None:
        wanted["initial"] = (initial, [(batch, d_inner, d_state)])
    for name, (tensor, shapes) in wanted.items():
        if tuple(tensor.shape) not in shapes:
            raise ValueError(
                f"{name} must have shape {' or '.join(map(str, shapes))} "
                f"beside x {tuple(x.shape)} and A {tuple(A.shape)}, got {tuple(tensor.shape)}."
            )


def _edited(name: str, tensor: Tensor, edit: Edit | None) -> Tensor:
    returned = None if edit is None else edit(tensor)
    if returned is None:
        return tensor
    return check_edited(name, returned, tensor)


# The explicit path keeps the chunks' order in memory, [pos, batch, d_state, d_inner], and shows it to callers
# as [batch, pos, d_inner, d_state]: what it computes is then the same arithmetic on the same runs of memory.


def _time_major(tensor: Tensor) -> Tensor:
    """[batch, pos, d_inner, d_state] or [batch, pos, d_state] -> [pos, batch, d_state, d_inner or 1]."""
    return tensor.permute(1, 0, 3, 2) if tensor.ndim == 4 else tensor.transpose(0, 1).unsqueeze(3)


def _from_time_major(tensor: Tensor) -> Tensor:
    return tensor.permute(1, 0, 3, 2)


class _Decay(torch.autograd.Function):
    """exp(dt A). Its backward computes it again, so that a hook may write into it."""

    @staticmethod
    def forward(ctx, dt, A):
        ctx.save_for_backward(dt, A)
        batch, pos, d_inner = dt.shape
        d_state = A.shape[1]
        strides = (d_state * d_inner, batch * d_state * d_inner, 1, d_inner)
        decay = dt.new_empty_strided((batch, pos, d_inner, d_state), strides)
        make_decay(dt.transpose(0, 1), A.t().contiguous(), out=_time_major(decay))
        return decay

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        dt, A = ctx.saved_tensors
        dt_t, A_nd = dt.transpose(0, 1), A.t().contiguous()
        product = dt.new_empty(*dt_t.shape[:2], *A_nd.shape)
        make_decay(dt_t, A_nd, out=product)
        product.mul_(_time_major(grad))
        grad_dt = torch.empty_like(dt_t)
        read_states(product, A_nd.expand(1, 1, *A_nd.shape), out=grad_dt)
        grad_A = product.mul_(dt_t.unsqueeze(2)).sum((0, 1))
        return grad_dt.transpose(0, 1), grad_A.t()


class _Read(torch.autograd.Function):
    """sum_n states C."""

    @staticmethod
    def forward(ctx, states, C):
        ctx.save_for_backward(states, C)
        y = states.new_empty(states.shape[:3])
        read_states(_time_major(states), _time_major(C), out=y.transpose(0, 1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        states, C = ctx.saved_tensors
        grad_t = grad.transpose(0, 1).contiguous()
        grad_states = grad_C = None
        if ctx.needs_input_grad[0]:
            grad_states = _from_time_major(grad_t.unsqueeze(2) * _time_major(C))
        if ctx.needs_input_grad[1] and C.ndim == 3:
            grad_C = sum_channels(grad_t, _time_major(states)).transpose(0, 1)
        elif ctx.needs_input_grad[1]:
            grad_C = _from_time_major(_time_major(states) * grad_t.unsqueeze(2))
        return grad_states, grad_C
