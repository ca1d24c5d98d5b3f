"""What hooks on a matrix memory returned, and what that tells the recurrence."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..trajectory_edit import Setting
from .memory import Forced, Inputs, Sizes, at, index


class Seen(NamedTuple):
    """A trajectory at some positions, and what its hook returned."""

    positions: tuple[int, ...] = ()
    setting: Setting = Setting()

    @property
    def set_positions(self) -> tuple[int, ...]:
        return tuple(self.positions[i] for i in self._where_set())

    def set_values(self) -> tuple[Tensor, Tensor]:
        """Where something is set: the values [batch, n, ...], and which of them count."""
        assert self.setting.values is not None and self.setting.set_at is not None
        where = self._where_set()
        values, mask = (at(x, where) for x in (self.setting.values.detach(), self.setting.set_at))
        return values.contiguous(), mask.to(torch.int8)

    def _where_set(self) -> list[int]:
        """Of these positions, the indices of those with set entries."""
        set_at = self.setting.set_at
        return [] if set_at is None else set_at.transpose(0, 1).flatten(1).any(1).nonzero()[:, 0].tolist()

    def kept(self) -> "Seen":
        """Without what would tie a graph to itself."""
        return Seen(self.positions, self.setting._replace(values=None, carried=None))


class Edits(NamedTuple):
    """writes: of the delta rule. states: of either operator.

    products: of linear attention, what is written at the positions `products_at` instead of k v^T, [batch,
        len(products_at), head, d_key, d_value]; at those of them in `changed`, it differs.
    """

    writes: Seen = Seen()
    states: Seen = Seen()
    products_at: tuple[int, ...] = ()
    changed: tuple[int, ...] = ()
    products: Tensor | None = None


def forced_by(edits: Edits, inputs: Inputs, chunk: int) -> Forced:
    """As numbers."""
    forced = Forced(dropped=edits.changed)
    if edits.writes.setting.set_at is not None:
        values, mask = edits.writes.set_values()
        forced = forced._replace(alone=edits.writes.set_positions, write_values=values, write_mask=mask)
    forced = with_ends(forced, (*edits.states.set_positions, *edits.changed), Sizes(inputs, chunk), inputs.v)
    if edits.states.setting.set_at is not None:
        assert forced.values is not None and forced.mask is not None
        where = index([forced.ends.index(p) for p in edits.states.set_positions], inputs.v)
        values, mask = edits.states.set_values()
        forced.values.index_copy_(1, where, values)
        forced.mask.index_copy_(1, where, mask)
    if edits.changed:
        assert forced.added is not None and edits.products is not None
        where = index([forced.ends.index(p) for p in edits.changed], inputs.v)
        given = at(edits.products.detach(), [edits.products_at.index(p) for p in edits.changed])
        forced.added.index_copy_(1, where, given.to(forced.added.dtype))
    return forced


def with_ends(forced: Forced, more: Sequence[int], size: Sizes, like: Tensor) -> Forced:
    """With chunks that also end with these positions; nothing is set or added there."""
    ends = tuple(sorted({*forced.ends, *more}))
    if ends == forced.ends:
        return forced
    kinds = {"values": size.dtype, "mask": torch.int8, "added": size.dtype}
    grown = {name: like.new_zeros(size.states(len(ends)), dtype=kind) for name, kind in kinds.items()}
    if forced.ends:
        where = index([ends.index(p) for p in forced.ends], like)
        for name, tensor in grown.items():
            tensor.index_copy_(1, where, getattr(forced, name))
    return forced._replace(ends=ends, **grown)


def put_known(
    x: Tensor, positions: tuple[int, ...], known: Tensor | None, known_at: tuple[int, ...]
) -> Tensor:
    """x [batch, len(positions), ...] with what is known at some of them."""
    place = {p: i for i, p in enumerate(known_at)}
    both = [(i, place[p]) for i, p in enumerate(positions) if p in place]
    if known is None or not both:
        return x
    target, source = (index(column, x) for column in zip(*both, strict=True))
    return x.index_copy(1, target, known.index_select(1, source))
