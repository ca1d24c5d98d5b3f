"""Large tensors in large pages."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LARGE = 2**22  # bytes, from which on NumPy asks for large pages


def empty(shape: Sequence[int], like: Tensor, order: Sequence[int] | None = None) -> Tensor:
    """An uninitialised tensor with the dtype and device of `like`; `order` is that of its axes in memory,
    outermost first.

    On a CPU memory is handed over when it is first written to, 4 KiB at a time, and for large tensors that
    takes longer than most of what is computed. NumPy asks the system for pages of 2 MiB, where it has them;
    torch does not.
    """
    strides, step = [0] * len(shape), 1
    for dim in reversed(range(len(shape)) if order is None else order):
        strides[dim] = step
        step *= shape[dim]
    dtype = str(like.dtype).removeprefix("torch.")
    if like.device.type != "cpu" or step * like.element_size() < LARGE or not hasattr(np, dtype):
        return like.new_empty_strided(tuple(shape), tuple(strides))
    memory = torch.from_numpy(np.empty(math.prod(shape), dtype))
    # Not a view, which autograd would not let anybody write into.
    return memory.new_empty(0).set_(memory.untyped_storage(), 0, tuple(shape), tuple(strides))
