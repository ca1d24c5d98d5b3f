"""Which logits a metric reads, and the runs of one cell put together."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooked_ssm.patching.rows import Patch

# One position for all documents, one each [batch], or a mask [batch, pos].
LogitPositions = int | Int[Tensor, "..."] | Bool[Tensor, "..."] | None


def wanted_logits(
    tokens: Int[Tensor, "batch pos"], positions: LogitPositions
) -> tuple[Bool[Tensor, "batch pos"], Callable[[Tensor], Tensor]]:
    """A mask of the logits that a metric reads, and how they are shaped for it. Raises if out of range."""
    batch, length = tokens.shape
    if positions is None:
        everywhere = torch.ones(batch, length, dtype=torch.bool, device=tokens.device)
        return everywhere, lambda logits: logits.unflatten(0, (batch, length))
    if isinstance(positions, int):
        if not -length <= positions < length:
            raise ValueError(f"logit_positions must lie in 0..{length - 1}, got {positions}.")
        positions = torch.full((batch,), positions % length, device=tokens.device)
    if positions.dtype == torch.bool:
        if positions.shape != tokens.shape or not positions.any():
            raise ValueError(
                f"a mask of logit_positions must be [batch={batch}, pos={length}] with one position or more, "
                f"got {list(positions.shape)} with {int(positions.sum())}."
            )
        return positions.to(tokens.device), lambda logits: logits
    if positions.shape != (batch,):
        raise ValueError(f"logit_positions must be one a document, [{batch}], got {list(positions.shape)}.")
    low, high = (int(x) for x in positions.aminmax())
    if low < 0 or high >= length:
        raise ValueError(f"logit_positions must lie in 0..{length - 1}, got values from {low} to {high}.")
    places = torch.arange(length, device=tokens.device)
    return places == positions.to(tokens.device)[:, None], lambda logits: logits


def cell_finals(patch: Patch, batch_size: int | None) -> Iterator[tuple[int, Tensor]]:
    """The number of every cell that is not the base run, and how it ends, [slot, d]."""
    left = patch.rows.cell.bincount(minlength=len(patch.cells)).tolist()
    pieces: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for part in patch.run(batch_size):
        cells, counts = (each.tolist() for each in part.cell.unique_consecutive(return_counts=True))
        spans = zip(cells, part.slot.split(counts), part.final.split(counts), strict=True)
        for cell, slots, final in spans:
            pieces.setdefault(cell, []).append((slots, final))
        for cell, done in enumerate(part.rows.cell.bincount().tolist()):
            left[cell] -= done
            if done and left[cell] == 0:
                yield cell, assembled(pieces.pop(cell), patch.base.final)


def assembled(pieces: list[tuple[Tensor, Tensor]], unpatched: Tensor) -> Tensor:
    """The base run's end with these slots replaced."""
    slots, final = pieces[0]
    if len(slots) == len(unpatched) and (slots[1:] > slots[:-1]).all():
        return final  # all slots, in order: rows are run by where they first differ
    complete = sum(len(slots) for slots, _ in pieces) == len(unpatched)
    out = torch.empty_like(unpatched) if complete else unpatched.clone()
    for slots, final in pieces:
        out[slots] = final
    return out
