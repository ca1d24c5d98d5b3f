"""Mamba's selective scan. Gu & Dao (2023), arXiv:2312.00752, Algorithm 2.

Per channel c and state dimension n, with step dt, input x, and B, C depending on the input too:

    h_t[c, n] = exp(dt_t[c] A[c, n]) h_{t-1}[c, n] + dt_t[c] x_t[c] B_t[n]         decay, write
    y_t[c]    = sum_n h_t[c, n] C_t[n]                                             read

This is the operator, and its form in torch, which has two paths. The fast path (`blocked_scan`) holds the
states of one block of documents and channels at a time; the explicit path, taken when decays, writes or
states are asked for, holds all. Looking changes no bit: see `unless_edited`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import call_of, implementation, in_one_dtype
from .blocked_scan import blocked_selective_scan, by_state, read_states, sum_channels
from .linear_scan import linear_scan
from .looking import Watched, unless_edited
from .memory import empty
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
    y_dtype = x.dtype
    inputs = in_one_dtype(x, dt, A, B, C, initial)
    edits = edit_decay, edit_write, edit_state
    if not any(edits):
        y, last = blocked_selective_scan(*inputs)
        return y.to(y_dtype), last
    watched = [None if edit is None else Watched(edit) for edit in edits]
    with torch.no_grad():
        exact = blocked_selective_scan(*inputs)
    plain = seen = explicit_selective_scan(*inputs, *watched)
    if any(watch is not None and watch.edited for watch in watched):
        with torch.no_grad():
            plain = explicit_selective_scan(*inputs)
    y, last = map(unless_edited, exact, seen, plain)
    return y.to(y_dtype), last


def explicit_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None,
    edit_decay: Edit | None = None,
    edit_write: Edit | None = None,
    edit_state: Edit | None = None,
) -> tuple[Tensor, Tensor]:
    """The same with all states in memory, for arguments of one dtype."""
    decay = _edited("decay", _Decay.apply(dt, A), edit_decay)
    write = ((dt * x).unsqueeze(2) * by_state(B)).transpose(2, 3)
    write = _edited("write", write, edit_write)
    if edit_state is None:
        states = linear_scan(decay, write, initial)
    else:
        states = scan_with_edits(decay, write, edit_state, initial)
    y = _Read.apply(states, C)
    return y, states[:, -1].clone(memory_format=torch.contiguous_format)  # pyright: ignore[reportReturnType]


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


# In memory the explicit path has [batch, pos, d_state, d_inner], as blocks do, and shows callers a transpose.


class _Decay(torch.autograd.Function):
    """exp(dt A). Its backward computes it again, so that a hook may write into it."""

    @staticmethod
    def forward(ctx, dt, A):
        ctx.save_for_backward(dt, A)
        decay = empty((*dt.shape, A.shape[1]), dt, (0, 1, 3, 2))  # not a view, which no hook could write into
        torch.mul(dt.unsqueeze(2), A.t(), out=by_state(decay)).exp_()
        return decay

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        dt, A = ctx.saved_tensors
        of_exponent = (dt.unsqueeze(2) * A.t()).exp_().mul_(grad.transpose(2, 3))
        grad_dt = torch.empty_like(dt, memory_format=torch.contiguous_format)
        read_states(of_exponent, A.t().expand(1, 1, *A.t().shape), out=grad_dt)
        grad_A = of_exponent.mul_(dt.unsqueeze(2)).sum((0, 1))
        return grad_dt, grad_A.t()


class _Read(torch.autograd.Function):
    """sum_n states C."""

    @staticmethod
    def forward(ctx, states, C):
        ctx.save_for_backward(states, C)
        y = states.new_empty(states.shape[:3])
        read_states(by_state(states), by_state(C), out=y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        states, C = ctx.saved_tensors
        grad_states = grad_C = None
        if ctx.needs_input_grad[0]:
            grad_states = (grad.unsqueeze(2) * by_state(C)).transpose(2, 3)
        if ctx.needs_input_grad[1] and C.ndim == 3:
            grad_C = sum_channels(grad, by_state(states))
        elif ctx.needs_input_grad[1]:
            grad_C = (by_state(states) * grad.unsqueeze(2)).transpose(2, 3)
        return grad_states, grad_C
