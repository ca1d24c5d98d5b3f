"""How many runs to stack on the batch axis: as many as are fast together, and fit in what memory is free."""

from typing import Any

import psutil
import torch
from jaxtyping import Shaped
from torch import Tensor

CACHE_BYTES = 32 * 2**20  # of activations at once on a CPU: beyond that, more runs at once are slower
FREE_SHARE = 4  # at most a quarter of what is free
WIDTHS = 24  # activations alive at once in a layer, in units of d_model, at a generous estimate


def free_bytes(device: torch.device) -> int:
    """Memory that a new tensor on this device could have."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    return psutil.virtual_memory().available


def rows_at_once(
    model: Any, activation: Shaped[Tensor, "..."], *, positions: int, numel: int, logits: int
) -> int:
    """Runs to stack, at least one.

    positions, numel, logits: of one run, how many positions it has, entries of the patched activation (of
    which several copies are made) and logits that are wanted.
    """
    cfg = getattr(model, "cfg", None)
    active = positions * getattr(cfg, "d_model", 0) * WIDTHS + 6 * numel
    total = active + 3 * logits * getattr(cfg, "d_vocab", 0)
    size, device = activation.element_size(), activation.device
    rows = free_bytes(device) // FREE_SHARE // max(1, size * total)
    if device.type == "cpu":
        rows = min(rows, CACHE_BYTES // max(1, size * active))
    return max(1, rows)


def logits_are_large(model: Any, logits: int, itemsize: int) -> bool:
    """Whether the logits of all documents are so large that a copy of them costs."""
    return logits * getattr(getattr(model, "cfg", None), "d_vocab", 0) * itemsize > CACHE_BYTES
