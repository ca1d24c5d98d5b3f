"""From cells of a sweep to stacked runs.

A cell replaces a part of one hook's activation in all documents. It is taken apart into rows, one a document.
Rows whose part is already what it would be replaced by, and rows that no wanted logit comes after, are the
base run and are not run. The others are sorted by where they begin to differ, and stacked.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from hooked_ssm.hooks import Hook
from hooked_ssm.ops.state_edit import StateEdit
from hooked_ssm.patching.base_run import BaseRun
from hooked_ssm.patching.memory import logits_are_large, rows_at_once

FEWEST_POSITIONS = 256  # of all rows together: with fewer, runs cost more than what a later start saves
Part = int | slice


class Cell(NamedTuple):
    """at: a position, a mask [doc, pos], or None for all. part: of every axis after batch and position."""

    at: int | Bool[Tensor, "doc pos"] | None
    part: tuple[Part, ...]


class Rows(NamedTuple):
    """Runs to make: of which cell, which document, replacing which positions."""

    cell: Int[Tensor, " row"]
    doc: Int[Tensor, " row"]
    at: Bool[Tensor, "row pos"]

    def __getitem__(self, index: Any) -> "Rows":  # type: ignore[override]
        return Rows(self.cell[index], self.doc[index], self.at[index])


class Patched(NamedTuple):
    """Where some rows end (`BaseRun`): for each entry the cell and the slot that it belongs to."""

    rows: Rows
    cell: Int[Tensor, " entry"]
    slot: Int[Tensor, " entry"]
    final: Float[Tensor, "entry d"]


class Patch:
    """The cells of one hook. `clean` and what the hook carries have their positions at axis `pos_dim`.

    current: what the hook carries in the base run, if that is known.
    partial: whether the hook carries one entry a position, [batch, pos, ...], so that runs may be partial.
    read_only: of a state, change the read at the position and not the later states.
    """

    def __init__(
        self,
        base: BaseRun,
        name: str,
        clean: Shaped[Tensor, "..."],
        cells: Sequence[Cell],
        *,
        current: Shaped[Tensor, "..."] | None = None,
        pos_dim: int = 1,
        partial: bool = True,
        read_only: bool = False,
    ):
        self.base, self.name, self.cells = base, name, cells
        self.pos_dim, self.partial, self.read_only = pos_dim, partial, read_only
        current = base.activations([name])[name] if current is None else current
        if clean.shape != current.shape:
            raise ValueError(
                f"{name!r} has shape {list(current.shape)} in the corrupted run and {list(clean.shape)} in "
                "the clean cache: clean and corrupted documents must be as many and as long."
            )
        until = base.stop if partial else None
        self.current = current.movedim(pos_dim, 1)[:, :until]
        self.clean = clean.to(current).movedim(pos_dim, 1)[:, :until]
        self.rows = self._rows()

    def _rows(self) -> Rows:
        """The rows that are not the base run, those that differ late first after those that differ early."""
        parts: dict[tuple, Tensor] = {}
        matters = self._matters()
        device = self.current.device
        empty = torch.zeros(0, dtype=torch.long, device=device)
        found = [Rows(empty, empty, matters[:0])]
        for number, (at, part) in enumerate(self.cells):
            key = tuple((p.start, p.stop) if isinstance(p, slice) else p for p in part)
            if key not in parts:
                index = (slice(None), slice(None), *part)
                differs = self.current[index] != self.clean[index]
                parts[key] = differs.reshape(*differs.shape[:2], -1).any(-1) & matters
            differs = parts[key]
            if isinstance(at, int):
                docs = differs[:, at].nonzero()[:, 0] if at < differs.shape[1] else empty
                mask = torch.zeros(len(docs), differs.shape[1], dtype=torch.bool, device=device)
                mask[:, at : at + 1] = True
            else:
                mask = differs if at is None else differs & at[:, : differs.shape[1]].to(device)
                docs = mask.any(1).nonzero()[:, 0]
                mask = mask[docs]
            found.append(Rows(torch.full_like(docs, number), docs, mask))
        rows = Rows(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        return rows[rows.at.int().argmax(1).argsort(stable=True)]

    def _matters(self) -> Bool[Tensor, "doc pos"]:
        """Positions with a wanted logit there or later, in models known to be causal; elsewhere all."""
        slots, length = self.base.slots, self.current.shape[1]
        if not self.base.starts_late or length > slots.shape[1]:
            return slots.any(1, keepdim=True).expand(-1, length)
        return slots.flip(1).cumsum(1).flip(1)[:, :length] > 0

    def run(self, batch_size: int | None = None) -> Iterator[Patched]:
        """All rows, some at a time."""
        firsts = self.rows.at.int().argmax(1).tolist()
        starts = [self.base.start_before(first, self.name) if self.partial else 0 for first in firsts]
        cells = self.rows.cell.tolist()
        logits = self.base.logits_a_run * len(self.base.tokens)
        large = logits_are_large(self.base.model, logits, self.current.element_size())
        begin = 0
        while begin < len(starts):
            most = min(batch_size or self._rows_at_once(starts[begin]), len(starts) - begin)
            if large:  # one cell at a time, whose logits are then the metric's without a copy
                most = cells[begin : begin + most].count(cells[begin])
            # Those that could start later than the first are left to the next call, if enough remain.
            enough = -(-FEWEST_POSITIONS // (self.base.stop - starts[begin]))
            end = begin + min(most, max(enough, starts[begin : begin + most].count(starts[begin])))
            yield self._run(self.rows[begin:end], starts[begin])
            begin = end

    def _rows_at_once(self, start: int) -> int:
        base = self.base
        positions = base.stop - start
        numel = self.current[0].numel() * positions // max(1, base.stop)
        return rows_at_once(
            base.model, self.current, positions=positions, numel=numel, logits=base.logits_a_run
        )

    def _run(self, rows: Rows, start: int) -> Patched:
        base = self.base
        wanted = base.slots[rows.doc, start:]
        if base.starts_late:  # causal: what comes before the edit is the base run's
            wanted = wanted & (rows.at.cumsum(1) > 0)[:, start : base.stop] if self.partial else wanted
        final = base.edited(self.name, self._edit(rows, start), rows.doc, start, wanted)
        row = wanted.nonzero()[:, 0]
        return Patched(rows, rows.cell[row], base.slot_number[rows.doc, start:][wanted], final)

    def _edit(self, rows: Rows, start: int) -> Any:
        """The hook that replaces every row's part."""
        by_part: dict[tuple, list[int]] = {}
        for number in rows.cell.unique().tolist():
            part = self.cells[number].part
            key = tuple((p.start, p.stop) if isinstance(p, slice) else p for p in part)
            by_part.setdefault(key, []).append(number)
        groups = []
        for numbers in by_part.values():
            mask = (
                rows.at
                if len(by_part) == 1
                else rows.at & torch.isin(rows.cell, rows.cell.new_tensor(numbers))[:, None]
            )
            row, pos = mask.nonzero(as_tuple=True)
            groups.append((row, pos, rows.doc[row], self.cells[numbers[0]].part))

        def edit(activation: Tensor, hook: Any) -> Any:
            # A copy: what the hook was handed then stands as the unedited one.
            edited = activation.clone()
            positions_second = edited.movedim(self.pos_dim, 1)
            for row, pos, doc, part in groups:
                positions_second[(row, pos - start, *part)] = self.clean[(doc, pos, *part)]
            if self.read_only and isinstance(hook, Hook):
                return StateEdit(edited, self._held(rows.at[:, start:], activation))
            return edited

        return edit

    def _held(self, at: Bool[Tensor, "row pos"], states: Tensor) -> Tensor:
        """The positions right after edited ones, where states are held at what they were."""
        after = torch.zeros_like(at)
        after[:, 1:] = at[:, :-1]
        after &= ~at
        return after.reshape(*after.shape, *[1] * (states.ndim - 2))
