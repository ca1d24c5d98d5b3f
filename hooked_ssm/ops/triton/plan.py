"""How a document is cut into chunks, and at which positions of them states are stored or set.

Where a state is set or added to, a chunk ends; a position where a write is set is a chunk of its own. All
else is cut evenly. So an edit costs a chunk, and no kernel has to know of more than ends of chunks.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

RUN = 16  # the most positions that one program takes one after the other to store states


class Plan(NamedTuple):
    """bounds: where chunks begin, and the end, as numbers and as a tensor on the device."""

    edges: tuple[int, ...]
    bounds: Tensor

    @property
    def n_chunks(self) -> int:
        return len(self.edges) - 1


@lru_cache(maxsize=256)
def plan(
    length: int, chunk: int, ends: tuple[int, ...], alone: tuple[int, ...], device: torch.device
) -> Plan:
    """Chunks of at most `chunk` positions, one ending with each of `ends`, one for each of `alone`."""
    borders = sorted({0, length, *(p + 1 for p in ends), *alone, *(p + 1 for p in alone)})
    edges = [edge for left, right in pairwise(borders) for edge in range(left, right, chunk)]
    return Plan((*edges, length), torch.tensor([*edges, length], dtype=torch.int32, device=device))


@lru_cache(maxsize=256)
def ends_in(
    edges: tuple[int, ...], positions: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The chunks [len(positions)] that end with the positions; for each chunk the index of its, or -1."""
    chunk_of = {edge - 1: c for c, edge in enumerate(edges[1:])}
    chunks = [chunk_of[p] for p in positions]
    slot = [-1] * (len(edges) - 1)
    for i, c in enumerate(chunks):
        slot[c] = i
    return torch.tensor(chunks, device=device), torch.tensor(slot, dtype=torch.int32, device=device)


class Runs(NamedTuple):
    """Neighbouring positions of a chunk: its number, the first, the last. slots: by position, the index in
    what is stored, or -1."""

    chunk: Tensor
    first: Tensor
    last: Tensor
    slots: Tensor


@lru_cache(maxsize=256)
def runs(edges: tuple[int, ...], positions: tuple[int, ...], device: torch.device) -> Runs:
    """Runs that hold all the positions, beginning and ending with one of them."""
    found: dict[tuple[int, int], list[int]] = {}
    c = 0
    for p in positions:
        while edges[c + 1] <= p:
            c += 1
        found.setdefault((c, (p - edges[c]) // RUN), []).append(p)
    slots = [-1] * edges[-1]
    for i, p in enumerate(positions):
        slots[p] = i

    def on_device(numbers: Iterable[int]) -> Tensor:
        return torch.tensor(list(numbers), dtype=torch.int32, device=device)

    return Runs(
        on_device(chunk for chunk, _ in found),
        on_device(held[0] for held in found.values()),
        on_device(held[-1] for held in found.values()),
        on_device(slots),
    )
