"""Products of float32 matrices by oneDNN, which torch brings with it, where that is faster than MKL.

On AMD's processors with AVX-512 MKL leaves half of every vector unused: oneDNN takes half the time. It is
taken there, by itself, for products large enough; elsewhere, in whatever it cannot do, and where
`torch.backends.mkldnn.flags(enabled=False)` says so, torch's own are.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .backends import is_plain

LEAST = 2**20  # multiplications
FEW_TERMS, LARGE_RESULT = 128, 2**20  # a large result of few terms each is bound by writing it


@cache
def faster_here() -> bool:
    """Whether this is a processor on which oneDNN is the faster one, and torch has it."""
    cpu = Path("/proc/cpuinfo")
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    if not (wide and torch.backends.mkldnn.is_available() and cpu.exists()):
        return False
    return "AuthenticAMD" in cpu.read_text() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def takes(a: Tensor, b: Tensor) -> bool:
    """Whether a b is a product that is better left to it."""
    rows_and_terms, (terms, columns) = a.numel(), b.shape
    if rows_and_terms * columns < LEAST or not (faster_here() and torch.backends.mkldnn.enabled):
        return False
    if terms < FEW_TERMS and rows_and_terms // terms * columns > LARGE_RESULT:
        return False
    return all(
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and is_plain(x)
        and (x.is_contiguous() or (x.ndim == 2 and x.t().is_contiguous()))
        for x in (a, b)
    ) and not (torch.is_autocast_enabled("cpu") or forward_ad._current_level >= 0)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias, b a matrix; differentiable as often as one likes.

    Bits depend neither on the number of threads nor on what other rows a has.
    """
    return _Product.apply(a, b, bias)  # pyright: ignore[reportReturnType]


def _either(a: Tensor, b: Tensor) -> Tensor:
    return product(a, b) if takes(a, b) else a @ b


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, bias):
        ctx.save_for_backward(a, b)
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        a, b = ctx.saved_tensors
        a_wanted, b_wanted, bias_wanted = ctx.needs_input_grad
        rows, grad_rows = a.flatten(0, -2), grad.flatten(0, -2)
        return (
            _either(grad, b.t()) if a_wanted else None,
            _either(rows.t(), grad_rows) if b_wanted else None,
            grad_rows.sum(0) if bias_wanted else None,
        )
