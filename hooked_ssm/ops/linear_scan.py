"""The linear recurrence, elementwise over all but batch and position:

    h_t = a_t h_{t-1} + w_t          decay a, write w, state h; before the first position h is `initial`, or 0

With g_t what the loss sends to h_t directly, its total derivative runs the same recurrence backwards:

    lambda_t = g_t + a_{t+1} lambda_{t+1},     dL/dw_t = lambda_t,     dL/da_t = lambda_t h_{t-1}

(with conjugates where a and h are complex).
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Inexact
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import call_of, implementation
from .grouped_scan import scan_after


def linear_scan(
    decay: Inexact[Tensor, "batch pos *dims"],
    write: Inexact[Tensor, "batch pos *dims"],
    initial: Inexact[Tensor, " batch *dims"] | None = None,
) -> Inexact[Tensor, "batch pos *dims"]:
    """All the states of h_t = decay_t h_{t-1} + write_t, differentiable in the three arguments."""
    check_scan_inputs(decay, write, initial)
    scan = scan_for(decay, write, initial)
    return _LinearScan.apply(decay, write, initial, scan)  # pyright: ignore[reportReturnType]


def check_scan_inputs(decay: Tensor, write: Tensor, initial: Tensor | None) -> None:
    if write.ndim < 2 or decay.shape != write.shape:
        raise ValueError(
            "decay and write must have one shape [batch, pos, ...], "
            f"got {tuple(decay.shape)} and {tuple(write.shape)}."
        )
    state_shape = write.shape[:1] + write.shape[2:]
    if initial is not None and initial.shape != state_shape:
        raise ValueError(
            f"initial must have the shape of one state, {tuple(state_shape)}, got {tuple(initial.shape)}."
        )
    dtypes = [tensor.dtype for tensor in (decay, write, initial) if tensor is not None]
    if len(set(dtypes)) > 1:
        raise TypeError(f"decay, write and initial must have one dtype, got {', '.join(map(str, dtypes))}.")


class Run(Protocol):
    def __call__(
        self,
        decay: Tensor,
        write: Tensor,
        initial: Tensor | None,
        values: Tensor | None = None,
        set_at: Tensor | None = None,
    ) -> Tensor:
        """The states, in the memory order of `write`. Where the mask `set_at` [batch, pos, ...] is true, the
        state is that of `values`."""
        ...


class Reverse(Protocol):
    def __call__(self, grad: Tensor, decay: Tensor, set_at: Tensor | None = None) -> Tensor:
        """lambda of the module docstring, a new tensor in the memory order of `decay`. Where `set_at` is
        true, h_t does not depend on h_{t-1}: there a_t counts as 0."""
        ...


class LinearScan(NamedTuple):
    """What a back end has to compute: numbers, without a graph."""

    run: Run
    reverse: Reverse


def scan_for(decay: Tensor, write: Tensor, initial: Tensor | None, **edits: object) -> LinearScan:
    """The back end's."""
    return implementation(
        call_of("linear_scan", {"decay": decay, "write": write, "initial": initial}, **edits)
    )


def run_scan(
    decay: Tensor,
    write: Tensor,
    initial: Tensor | None,
    values: Tensor | None = None,
    set_at: Tensor | None = None,
) -> Tensor:
    states = torch.empty_like(write)
    if write.shape[1] == 0:
        return states
    decay = narrow(decay)
    first = write[:, 0] if initial is None else torch.addcmul(write[:, 0], decay[:, 0], initial)
    if set_at is not None and values is not None:
        first = torch.where(set_at[:, 0], values[:, 0], first)
    states[:, 0] = first
    later = (None if x is None else x[:, 1:] for x in (decay, write, states, set_at, values))
    scan_after(first, *later)  # pyright: ignore[reportArgumentType]
    return states


def total_gradient(grad: Tensor, decay: Tensor, set_at: Tensor | None = None) -> Tensor:
    total = torch.empty_like(decay)
    if grad.shape[1] == 0:
        return total
    total[:, -1] = grad[:, -1]
    decay = narrow(decay).conj().resolve_conj()
    earlier, cut = grad[:, :-1], None if set_at is None else set_at[:, 1:]
    scan_after(total[:, -1], decay[:, 1:], earlier, total[:, :-1], cut, earlier, backwards=True)
    return total


def narrow(decay: Tensor) -> Tensor:
    """Decays [batch, pos, ...] without the repetitions along axes, but for the positions'."""
    for dim in range(decay.ndim):
        if dim != 1 and decay.stride(dim) == 0:
            decay = decay.narrow(dim, 0, min(1, decay.shape[dim]))
    return decay


def in_single(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Half precision is computed in single."""

    def computed(first: Tensor, *others: Tensor | None) -> Tensor:
        dtype = torch.promote_types(first.dtype, torch.float32)
        if dtype == first.dtype:
            return function(first, *others)
        others = tuple(x if x is None or x.dtype == torch.bool else x.to(dtype) for x in others)
        return function(first.to(dtype), *others).to(first.dtype)

    return computed


TORCH = LinearScan(in_single(run_scan), in_single(total_gradient))


def times_previous(total: Tensor, states: Tensor, initial: Tensor | None) -> Tensor:
    """dL/da_t = lambda_t h_{t-1}."""
    grad_decay = torch.empty_like(total)
    torch.mul(total[:, 1:], states[:, :-1].conj(), out=grad_decay[:, 1:])
    grad_decay[:, :1] = 0 if initial is None else total[:, :1] * initial.conj().unsqueeze(1)
    return grad_decay


def times_first(total: Tensor, decay: Tensor) -> Tensor:
    """dL/dinitial = a_0 lambda_0."""
    return (decay[:, :1].conj() * total[:, :1]).sum(1)  # zero if there is no position


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, decay, write, initial, scan):
        states = scan.run(decay, write, initial)
        ctx.save_for_backward(decay, states, initial)
        ctx.scan = scan
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        decay, states, initial = ctx.saved_tensors
        total = ctx.scan.reverse(grad, decay)
        grad_decay = times_previous(total, states, initial) if ctx.needs_input_grad[0] else None
        return grad_decay, total, times_first(total, decay) if ctx.needs_input_grad[2] else None, None
