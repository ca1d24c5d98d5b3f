"""A linear recurrence whose states can be edited: h_t = a_t h_{t-1} + w_t, unless h_t is set.

The trajectory is computed and handed to a hook. Where what comes back differs from it, or a `StateEdit` says
so, the entry is *set*, and the recurrence is restarted from there:

    h_t = v_t                        where set (v: what the hook returned)
    h_t = a_t h_{t-1} + w_t          elsewhere, h_{t-1} being the edited state

Gradients. The tensor the hook saw and the one it returned both receive the total derivative
lambda_t = g_t + a_{t+1} lambda_{t+1} (a = 0 where t+1 is set), through the read at t and every later state.
So three parts share the work:

    _Trajectory   a, w -> the raw trajectory. Its backward takes lambda as already total: dw = lambda,
                  da_t = lambda_t h_{t-1} with the final h
    the hook
    _Restart      its result -> the final states. Its backward computes lambda, once

The hook may also send gradient to the trajectory by another way: v may depend on it, or a loss may read it
directly. That is the gradient of the raw trajectory alone, and is not yet total. To tell the two apart,
_Trajectory has a second output without memory of its own, `carried`, through which _Restart says which part
of what it sends is lambda at entries nobody set; what arrives beyond that is carried back through the raw
recurrence. So a backward hook that adds to the gradient at h_t adds to every earlier one.

An entry nobody set at which nothing arrives (the hook detached it, or put a constant equal to what was there)
counts as untouched. This is where the bookkeeping ends: if a loss, or what the hook set elsewhere, also
depends on that very entry of what was handed out, the gradients of a and w are wrong. And a backward hook
cannot stop the gradient by zeroing it: the way to do that is to return the states detached.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Inexact
from torch import Tensor
from torch.autograd.function import once_differentiable

from .linear_scan import LinearScan, check_scan_inputs, scan_for, times_first, times_previous


@dataclass(frozen=True)
class StateEdit:
    """What a state hook returns to say which entries it sets, whether or not their values change.

    `mask` is broadcast to `states`: true means set. To freeze position q while an earlier one is edited:
    `StateEdit(states, mask)` with `mask[:, q] = True`. Entries that differ from the trajectory are set too.
    """

    states: Inexact[Tensor, "batch pos *dims"]
    mask: Bool[Tensor, "..."]


def scan_with_edits(
    decay: Inexact[Tensor, "batch pos *dims"],
    write: Inexact[Tensor, "batch pos *dims"],
    edit: Callable[[Tensor], object],
    initial: Inexact[Tensor, " batch *dims"] | None = None,
) -> Inexact[Tensor, "batch pos *dims"]:
    """The states of the recurrence after `edit` has seen the trajectory and set what it wants.

    `edit` gets a fresh tensor [batch, pos, ...] and returns a tensor of that shape, the same one edited in
    place, None (the same one), or a `StateEdit`. If what it returns is detached as a whole, gradients stop
    there, as at any other hook; detaching entries that are not set changes nothing. (Writing through `.data`
    is not seen: torch does not count it.)
    """
    check_scan_inputs(decay, write, initial)
    scan = scan_for(decay, write, initial, state=edit)
    first = None if initial is None else initial.detach()
    memo = _Memo(scan)
    seen, carried = _Trajectory.apply(decay, write, initial, memo)  # pyright: ignore[reportGeneralTypeIssues]

    # Writing in place moves the version counter: an untouched trajectory is known without a copy to compare.
    copy = seen.clone() if seen.is_inference() else None
    version = None if seen.is_inference() else seen._version
    returned = edit(seen)
    values, mask = (returned.states, returned.mask) if isinstance(returned, StateEdit) else (returned, None)
    values = seen if values is None else check_edited("states", values, seen)
    if mask is not None:
        _check_mask(mask, seen)

    untouched = version is not None and seen._version == version
    if copy is not None:
        raw = copy
    elif untouched:
        raw = seen.detach()
    else:
        raw = scan.run(decay.detach(), write.detach(), first)
    set_at = None if untouched and _same_view(values, seen) else differing(values.detach(), raw)
    if mask is not None:
        set_at = mask.expand_as(values) if set_at is None else mask | set_at
    if set_at is not None and not set_at.any():
        set_at = None

    if not values.requires_grad:
        carried = carried.detach()
    states = _Restart.apply(values, carried, decay.detach(), write.detach(), first, set_at, scan)
    memo.keep(raw, raw if set_at is None else states.detach())  # pyright: ignore[reportAttributeAccessIssue]
    return states  # pyright: ignore[reportReturnType]


def check_edited(name: str, returned: object, handed: Tensor) -> Tensor:
    """What a hook returned, if it can stand in for the tensor it was handed; raises if not."""
    if not isinstance(returned, Tensor):
        raise TypeError(f"a hook on the {name} must return a tensor or None, got {type(returned).__name__}.")
    if returned.shape != handed.shape:
        raise ValueError(
            f"a hook on the {name} must return shape {tuple(handed.shape)}, got {tuple(returned.shape)}."
        )
    if returned.dtype != handed.dtype or returned.device != handed.device:
        raise TypeError(
            f"a hook on the {name} must return dtype {handed.dtype} on {handed.device}, "
            f"got {returned.dtype} on {returned.device}."
        )
    return returned


def _check_mask(mask: object, seen: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"StateEdit.mask must be a tensor of dtype torch.bool, got {got}.")
    try:
        mask.expand_as(seen)
    except RuntimeError as error:
        raise ValueError(
            f"StateEdit.mask must broadcast to the states' {tuple(seen.shape)}, got {tuple(mask.shape)}."
        ) from error


def differing(values: Tensor, raw: Tensor) -> Tensor:
    """Where the two differ. What is no number in both does not."""
    differs = values != raw
    return differs & ((values == values) | (raw == raw)) if differs.any() else differs


def _same_view(one: Tensor, other: Tensor) -> bool:
    """Do they show the same memory in the same order? (A module's backward hooks wrap a tensor in a view.)"""
    return one.data_ptr() == other.data_ptr() and one.stride() == other.stride() and one.shape == other.shape


class _Memo:
    """The raw and the final states for _Trajectory's backward: detached, so that no reference cycle forms."""

    def __init__(self, scan: LinearScan):
        self.scan = scan

    def keep(self, raw: Tensor, final: Tensor) -> None:
        self.raw, self.final = raw, final
        self.versions = None if raw.is_inference() or final.is_inference() else (raw._version, final._version)

    def recall(self) -> tuple[Tensor, Tensor]:
        if self.versions != (self.raw._version, self.final._version):
            raise RuntimeError(
                "the states of a recurrence were modified in place after their hook returned, "
                "and its gradient needs them; clone them first."
            )
        return self.raw, self.final


class _Trajectory(torch.autograd.Function):
    @staticmethod
    def forward(ctx, decay, write, initial, memo):
        ctx.save_for_backward(decay, initial)
        ctx.memo = memo
        ctx.set_materialize_grads(False)
        states = memo.scan.run(decay, write, initial)
        return states, states.new_zeros(()).expand(states.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, through_hook, carried):  # pyright: ignore[reportIncompatibleMethodOverride]
        if through_hook is None:  # what the hook returned does not depend on what it saw
            return None, None, None, None
        decay, initial = ctx.saved_tensors
        raw, final = ctx.memo.recall()
        parts = [] if carried is None else [(carried, final)]
        further = through_hook if carried is None else _beyond(through_hook, carried)
        if further is not None:
            parts.append((ctx.memo.scan.reverse(further, decay), raw))
        total = reduce(torch.add, (total for total, _ in parts))
        grad_decay = reduce(torch.add, (times_previous(total, states, initial) for total, states in parts))
        return grad_decay, total, times_first(total, decay) if ctx.needs_input_grad[2] else None, None


def _beyond(through_hook: Tensor, carried: Tensor) -> Tensor | None:
    """What reached the trajectory beyond the total derivative at entries nobody set; None if nothing did."""
    if torch.equal(through_hook, carried):
        return None
    # Nothing to take off where nothing came through: the hook put a constant, equal to what was there.
    further = (through_hook - carried).masked_fill_(through_hook == 0, 0)
    return further if further.any() else None


class _Restart(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, carried, decay, write, initial, set_at, scan):
        ctx.save_for_backward(decay, set_at)
        ctx.scan = scan
        if set_at is None:
            return values.view_as(values)
        return scan.run(decay, write, initial, values, set_at)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        decay, set_at = ctx.saved_tensors
        total = ctx.scan.reverse(grad, decay, set_at)
        carried = total if set_at is None else total.masked_fill(set_at, 0)
        return total if ctx.needs_input_grad[0] else None, carried, *[None] * 5
