"""`selective_scan`, compiled.

Without a graph to build, states that are asked for are written by the pass that computes the reads, decays
and writes apart from it. With one, or from the first hook on that changes something, each is computed from
the ones before. The arithmetic is the same, and so are the bits.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hooked_ssm.ops.backends import in_one_dtype
from hooked_ssm.ops.linear_scan import linear_scan
from hooked_ssm.ops.memory import empty
from hooked_ssm.ops.selective_scan import _edited
from hooked_ssm.ops.state_edit import _same_view, check_edited, scan_with_edits

from . import selective_scan_kernels as kernels
from .threads import split

Edit = Callable[[Tensor], object]
BY_STATE = (0, 1, 3, 2)  # the order in memory of what is [batch, pos, channel, state]
EXP = 8  # multiplications that a decay is worth


def numba_selective_scan(
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
    x, dt, A, B, C, initial = inputs = in_one_dtype(x, dt, A, B, C, initial)
    graph = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    asked = edit_decay, edit_write, edit_state
    if not any(asked):
        y, last = _Scan.apply(*inputs) if graph else _forward(*inputs)[:2]  # pyright: ignore
    elif graph or torch.is_inference_mode_enabled():
        y, last = _by_parts(x, dt, A, B, C, initial, None, None, *asked)
    else:
        y, last = _looked_at(x, dt, A, B, C, initial, *asked)
    return y.to(y_dtype), last


def _looked_at(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None,
    edit_decay: Edit | None,
    edit_write: Edit | None,
    edit_state: Edit | None,
) -> tuple[Tensor, Tensor]:
    """By the fast path, until one edits."""
    decay = write = None
    if edit_decay is not None:
        decay, edited = _handed("decay", _Decay.apply(dt, A), edit_decay)  # pyright: ignore
        if edited:
            return _by_parts(x, dt, A, B, C, initial, decay, None, None, edit_write, edit_state)
    if edit_write is not None:
        write, edited = _handed("write", _Write.apply(dt * x, B), edit_write)  # pyright: ignore
        if edited:
            return _by_parts(x, dt, A, B, C, initial, decay, write, None, None, edit_state)
    y, last, _, states = _forward(x, dt, A, B, C, initial, emit=edit_state is not None)
    if edit_state is not None and states is not None:
        version = states._version
        returned = edit_state(states)
        if returned is None:
            returned = states
        if not (isinstance(returned, Tensor) and _untouched(returned, states, version)):
            return _by_parts(x, dt, A, B, C, initial, decay, write, None, None, lambda _: returned)
    return y, last


def _handed(name: str, tensor: Tensor, edit: Edit) -> tuple[Tensor, bool]:
    """What the edit makes of the tensor, and whether that is anything else."""
    version = tensor._version
    returned = edit(tensor)
    checked = tensor if returned is None else check_edited(name, returned, tensor)
    return checked, not _untouched(checked, tensor, version)


def _untouched(returned: Tensor, handed: Tensor, version: int) -> bool:
    return handed._version == version and not returned.requires_grad and _same_view(returned, handed)


def _by_parts(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None,
    decay: Tensor | None,
    write: Tensor | None,
    edit_decay: Edit | None,
    edit_write: Edit | None,
    edit_state: Edit | None,
) -> tuple[Tensor, Tensor]:
    """Decays and writes, unless given, then states, then reads; all differentiable."""
    if decay is None:
        decay = _Decay.apply(dt, A)
        decay = _edited("decay", decay, edit_decay)  # pyright: ignore[reportArgumentType]
    if write is None:
        write = _Write.apply(dt * x, B)
        write = _edited("write", write, edit_write)  # pyright: ignore[reportArgumentType]
    if edit_state is None:
        states = linear_scan(decay, write, initial)
    else:
        states = scan_with_edits(decay, write, edit_state, initial)
    return _Read.apply(states, C), states[:, -1].clone(memory_format=torch.contiguous_format)  # pyright: ignore


def _by_state(tensor: Tensor) -> Tensor:
    """B or C, [batch, pos, (channel,) state], as [batch, pos, state, channel or 1]."""
    return tensor.unsqueeze(3) if tensor.ndim == 3 else tensor.transpose(2, 3)


def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None,
    emit: bool = False,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """y, the last state, the state before every chunk if kept, and all states if emitted."""
    x, dt, A, B, C = (tensor.detach() for tensor in (x, dt, A, B, C))
    (batch, pos, channels), n_states = x.shape, A.shape[1]
    shape = batch, pos, channels, n_states
    last = empty((batch, channels, n_states), x, (0, 2, 1))
    h = last.transpose(1, 2)
    if initial is None:
        h.zero_()
    else:
        h.copy_(initial.detach().transpose(1, 2))
    starts = x.new_empty((-(-pos // kernels.CHUNK) if keep else 0, *h.shape))
    states = empty(shape if emit else (0,) * 4, x, BY_STATE)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    arrays = (
        x,
        dt,
        A.t(),
        _by_state(B),
        _by_state(C),
        h,
        starts,
        states.permute(BY_STATE),
        y,
    )
    tiles = -(-channels // kernels.FORWARD_TILE)
    split(
        kernels.forward,
        batch * tiles,
        batch * pos * n_states * channels * EXP,
        *(tensor.contiguous().numpy() for tensor in arrays),
    )
    return y, last, starts, states if emit else None


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, initial):
        y, last, starts, *_ = _forward(x, dt, A, B, C, initial, keep=True)
        ctx.save_for_backward(x, dt, A, B, C, starts)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, gy, glast):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, dt, A, B, C, starts = ctx.saved_tensors
        (batch, pos, channels), n_states = x.shape, A.shape[1]
        gy = torch.zeros_like(x) if gy is None else gy
        lam = starts.new_zeros(starts.shape[1:])
        if glast is not None:
            lam.copy_(glast.transpose(1, 2))
        gx, gdt = (x.new_empty(x.shape) for _ in range(2))
        gA = A.new_empty(batch, n_states, channels)
        tiles = -(-channels // kernels.BACKWARD_TILE)
        B_n, C_n = _by_state(B), _by_state(C)
        gB, gC = (
            x.new_empty((batch, pos, n_states, channels) if M.shape[3] > 1 else (tiles, batch, pos, n_states))
            for M in (B_n, C_n)
        )
        arrays = x, dt, A.t(), B_n, C_n, starts, gy, lam, gx, gdt, gA, gB, gC
        split(
            kernels.backward,
            batch * tiles,
            batch * pos * n_states * channels * 2 * EXP,
            *(tensor.contiguous().numpy() for tensor in arrays),
        )
        gB, gC = (
            g.transpose(2, 3) if M_n.shape[3] > 1 else g.sum(0).reshape(M.shape)
            for g, M_n, M in ((gB, B_n, B), (gC, C_n, C))
        )
        initial = lam.transpose(1, 2).contiguous() if ctx.needs_input_grad[5] else None
        return gx, gdt, gA.sum(0).t(), gB, gC, initial


class _Decay(torch.autograd.Function):
    """exp(dt A). Its backward computes it again, so that a hook may write into it."""

    @staticmethod
    def forward(ctx, dt, A):
        ctx.save_for_backward(dt, A)
        batch, pos, channels = dt.shape
        decay = empty((batch, pos, channels, A.shape[1]), dt, BY_STATE)
        arrays = dt.contiguous(), A.t().contiguous(), decay.permute(BY_STATE)
        split(kernels.decay_forward, batch, decay.numel() * EXP, *(tensor.numpy() for tensor in arrays))
        return decay

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        dt, A = ctx.saved_tensors
        grad = grad.transpose(2, 3).contiguous()
        gdt, gA = (
            torch.empty_like(dt, memory_format=torch.contiguous_format),
            A.new_empty(len(dt), *A.t().shape),
        )
        arrays = dt.contiguous(), A.t().contiguous(), grad, gdt, gA
        split(kernels.decay_backward, len(dt), grad.numel() * EXP, *(tensor.numpy() for tensor in arrays))
        return gdt, gA.sum(0).t()


class _Write(torch.autograd.Function):
    """u B."""

    @staticmethod
    def forward(ctx, u, B):
        ctx.save_for_backward(u, B)
        write = empty((*u.shape, B.shape[-1]), u, BY_STATE)
        torch.mul(u.unsqueeze(2), _by_state(B), out=write.permute(BY_STATE))
        return write

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        u, B = ctx.saved_tensors
        grad = grad.permute(BY_STATE)
        if B.ndim == 4:
            return (grad * _by_state(B)).sum(2), grad.transpose(2, 3) * u.unsqueeze(3)
        return (B.unsqueeze(2) @ grad).squeeze(2), (grad @ u.unsqueeze(3)).squeeze(3)


class _Read(torch.autograd.Function):
    """sum_n states C."""

    @staticmethod
    def forward(ctx, states, C):
        ctx.save_for_backward(states, C)
        y = states.new_empty(states.shape[:3])
        arrays = states.detach().transpose(2, 3).contiguous(), _by_state(C).contiguous(), y
        split(kernels.read_forward, len(y), states.numel(), *(tensor.numpy() for tensor in arrays))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        states, C = ctx.saved_tensors
        grad_states = grad_C = None
        if ctx.needs_input_grad[0]:
            grad_states = (grad.unsqueeze(2) * _by_state(C)).transpose(2, 3)
        if ctx.needs_input_grad[1] and C.ndim == 3:
            grad_C = (states.transpose(2, 3) @ grad.unsqueeze(3)).squeeze(3)
        elif ctx.needs_input_grad[1]:
            grad_C = states * grad.unsqueeze(3)
        return grad_states, grad_C
