"""Large tensors on a CPU, where no graph is built: in large pages, and in memory that has been used before.

Memory is handed over by the system when it is first written to, and cleared then, 4 KiB at a time. For states
that takes longer than computing them. NumPy asks for pages of 2 MiB, where the system has them; and what a
freed tensor leaves is kept for the next of that size, up to KEPT bytes in all.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import onednn
from .backends import call_of, implementation, is_plain

LARGE = 2**22  # bytes, from which on NumPy asks for large pages
KEPT = 2**28  # bytes

_free: dict[int, list[np.ndarray]] = {}


def empty(shape: Sequence[int], like: Tensor, order: Sequence[int] | None = None) -> Tensor:
    """An uninitialised tensor with the dtype and device of `like`; `order` is that of its axes in memory,
    outermost first."""
    strides, step = [0] * len(shape), 1
    for dim in reversed(range(len(shape)) if order is None else order):
        strides[dim] = step
        step *= shape[dim]
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size < LARGE or not is_plain(like):
        return like.new_empty_strided(tuple(shape), tuple(strides))
    memory = torch.from_numpy(np.asarray(_Block(size)))
    # Not a view, which autograd would not let anybody write into.
    return like.new_empty(0).set_(memory.untyped_storage(), 0, tuple(shape), tuple(strides))


class _Block:
    """Bytes that go back to the free ones when nothing refers to them any more."""

    def __init__(self, size: int):
        try:
            self.bytes = _free[size].pop()
        except (KeyError, IndexError):
            self.bytes = np.empty(size, np.uint8)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.bytes.__array_interface__

    def __del__(self, free: dict[int, list[np.ndarray]] = _free) -> None:
        held = sum(size * len(blocks) for size, blocks in list(free.items()))
        if held + self.bytes.size <= (KEPT or 0):  # None while the interpreter ends
            free.setdefault(self.bytes.size, []).append(self.bytes)


def give_back() -> None:
    """Gives the memory that is kept back to the system."""
    _free.clear()


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a * b."""
    if builds_graph(a, b):
        return a * b
    return torch.mul(a, b, out=empty(torch.broadcast_shapes(a.shape, b.shape), a))


FEW_ROWS, LARGE_MATRIX = 4, 2**16


def few_rows(a: Tensor, b: Tensor) -> bool:
    """Whether a product with a matrix is bound by how fast that is read, and no graph is built."""
    if b.numel() < LARGE_MATRIX or not 1 <= a.numel() // (a.shape[-1] or 1) <= FEW_ROWS:
        return False
    return a.dtype == b.dtype and not builds_graph(a, b) and not torch.is_autocast_enabled(a.device.type)


def matrix_product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias, b a matrix."""
    if few_rows(a, b):
        return product_of_few_rows(a, b, bias)
    if onednn.takes(a, b):
        return onednn.product(a, b, bias)
    if (
        builds_graph(a, b)
        or a.dtype != b.dtype
        or torch.is_autocast_enabled(a.device.type)
        or not is_plain(a)
    ):
        y = a @ b
    else:
        y = torch.matmul(a, b, out=empty((*a.shape[:-1], b.shape[-1]), a))
    return y if bias is None else y + bias


def product_of_few_rows(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias where `few_rows` says so."""
    if a.shape[-1] != len(b):
        raise ValueError(
            f"a product needs rows as long as the matrix, got {list(a.shape)} and {list(b.shape)}."
        )
    y = implementation(call_of("matrix_product", {"a": a, "b": b}))(a, b)
    return y if bias is None else y + bias


def torch_matrix_product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def builds_graph(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
