"""Large tensors in large pages, where no graph is built."""

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


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a * b."""
    if _graph(a, b):
        return a * b
    return torch.mul(a, b, out=empty(torch.broadcast_shapes(a.shape, b.shape), a))


def matrix_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, b a matrix."""
    if _graph(a, b) or a.dtype != b.dtype or torch.is_autocast_enabled(a.device.type):
        return a @ b
    return torch.matmul(a, b, out=empty((*a.shape[:-1], b.shape[-1]), a))


def _graph(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
