"""All states of h_t = a_t h_{t-1} + w_t, in a number of operations that grows as the length's logarithm.

GROUP positions in a row are a group. Of all groups at once, member after member, what they do to the state
before them is composed: first (a', w') and then (a, w) is

    (a a', a w' + w).

So the states after the groups are the same problem, GROUP times shorter. From them the states inside follow,
member after member, of all groups at once, by the recurrence itself: rounding is that of a loop over
positions, but for the states that groups begin with.

Decays are multiplied, never divided by, so that one of 0 is no special case. (Those of a group have to have a
product: decays above 1 that multiply to infinity leave no number behind a state of exactly 0.) A state that
is set cuts off what was before it in its group, and is chosen; it is not added to 0 times what was there. So
infinity ends at it.

Timed on one thread of a CPU, against a loop over positions: 1.3 times as long at [4, 512, 4096], 2.4 times at
[32, 36, 2048]; by doubling, with log2(length) operations on everything, 16 and 31 times. Groups of 6 to 16
are alike. Memory beside the result is some 2 / GROUP of it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

GROUP = 8


def scan_after(
    before: Tensor,
    decay: Tensor,
    write: Tensor,
    out: Tensor,
    set_at: Tensor | None = None,
    values: Tensor | None = None,
    *,
    backwards: bool = False,
) -> None:
    """Fills `out` [batch, pos, ...] with the states after `before` [batch, ...]. It may be `write` itself.

    decay: broadcasts to `write`, but has all positions. Where the mask `set_at` is true, the state is that of
    `values`. `backwards`: positions are taken from the last to the first.
    """
    h = before.unsqueeze(1)
    groups = (write.shape[1] - 1) // GROUP  # that are followed by another
    if groups > 0:
        h = _with_ends(h, groups, decay, write, set_at, values, backwards)
    for a, w, cut, value, after in _members(backwards, decay, write, set_at, values, out):
        h = _earliest(w.shape[1], h, backwards)
        if cut is None:
            h = torch.addcmul(w, a, h, out=after)
        else:
            h = torch.where(cut, value, torch.addcmul(w, a, h), out=after)


def _with_ends(
    before: Tensor,
    groups: int,
    decay: Tensor,
    write: Tensor,
    set_at: Tensor | None,
    values: Tensor | None,
    backwards: bool,
) -> Tensor:
    """The state before the first group, and those after it and the others."""
    product = total = cut_off = None
    for member in _members(backwards, decay, write, set_at, values):
        each: Any = (None if x is None else _earliest(groups, x, backwards) for x in member)
        a, w, cut, value = each
        if product is None or total is None:
            product, total = a.clone(), w.clone()
        else:
            product *= a
            torch.addcmul(w, a, total, out=total)
        if cut is not None:
            torch.where(cut, value, total, out=total)
            cut_off = cut if cut_off is None else cut_off | cut
    assert product is not None and total is not None
    scan_after(before[:, 0], product, total, total, cut_off, total, backwards=backwards)
    return torch.cat([total, before] if backwards else [before, total], dim=1)


def _members(backwards: bool, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Of each [batch, pos, ...] the first members of all groups, then the second ones, and so on."""
    length = next(x.shape[1] for x in tensors if x is not None)
    for i in range(min(GROUP, length)):
        begin = (length - 1 - i) % GROUP if backwards else i
        yield tuple(None if x is None else x[:, begin::GROUP] for x in tensors)


def _earliest(groups: int, members: Tensor, backwards: bool) -> Tensor:
    """Of members [batch, group, ...], those of the groups that come first."""
    return members[:, members.shape[1] - groups :] if backwards else members[:, :groups]
