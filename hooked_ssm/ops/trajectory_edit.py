"""What a hook on a trajectory sets, for recurrences in which everything after a set entry responds to it.

A hook is handed a copy X of the trajectory and returns Y. Entries that differ, or that a `StateEdit` names,
are *set*: the recurrence is computed again with them. Elsewhere Y is X, and is what the recurrence computes
there anyway: but the gradient at Y is that of adding something to the entry and carrying it on.

Whoever computes the recurrence again sends Y this total gradient, everywhere, and `carried`, at entries that
are not set, the same once more. X passes on what reached it through the hook beyond that: nothing, unless Y
depends on X in some other way. An entry that is not set, and through which nothing came (the hook detached
it, or put a constant equal to what was there), counts as untouched.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .state_edit import StateEdit, _beyond, _check_mask, _same_view, check_edited, differing


class Setting(NamedTuple):
    """What a hook on a trajectory returned.

    values: [batch, pos, ...], computed with where set.
    carried: receives the total gradient of what is not set.
    set_at: which entries are set [batch, pos, ...], if any is.
    stop: whether the values as a whole were detached, so that gradients stop there.
    """

    values: Tensor | None = None
    carried: Tensor | None = None
    set_at: Tensor | None = None
    stop: bool = False


def hand_out(
    name: str,
    trajectory: Tensor,
    edit: Callable[[Tensor], object],
    again: Callable[[], Tensor] | None = None,
) -> Setting:
    """Gives `edit` a fresh copy of the trajectory [batch, pos, ...], which it may write into.

    `again` computes the trajectory once more. If it is given, and no graph is built, `edit` gets the
    trajectory itself, and `again` is called if it has written into it.
    """
    copied = again is None or trajectory.requires_grad or trajectory.is_inference()
    if copied:
        seen, carried = _Handed.apply(trajectory)  # pyright: ignore[reportGeneralTypeIssues]
    else:
        seen, carried = trajectory, trajectory.new_zeros(()).expand(trajectory.shape)
    version = None if copied else seen._version
    returned = edit(seen)
    values, mask = (returned.states, returned.mask) if isinstance(returned, StateEdit) else (returned, None)
    values = seen if values is None else check_edited(name, values, seen)
    if mask is not None:
        _check_mask(mask, seen)
    written = version is not None and seen._version != version
    if version is not None and mask is None and not written and _same_view(values, seen):
        return Setting(values, carried)
    raw = again() if written and again is not None else trajectory
    set_at = None
    if mask is not None or not torch.equal(values, raw):
        set_at = differing(values.detach(), raw.detach())
        set_at = set_at if mask is None else mask | set_at
    if set_at is not None and not set_at.any():
        set_at = None
    return Setting(values, carried, set_at, trajectory.requires_grad and not values.requires_grad)


class _Handed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, trajectory):
        ctx.set_materialize_grads(False)
        # `carried` has a gradient, but no memory of its own.
        carried = trajectory.new_zeros(()).expand(trajectory.shape)
        return trajectory.clone(memory_format=torch.contiguous_format), carried

    @staticmethod
    @once_differentiable
    def backward(ctx, through_hook, carried):  # pyright: ignore[reportIncompatibleMethodOverride]
        if through_hook is None or carried is None:
            return through_hook
        return _beyond(through_hook, carried)
