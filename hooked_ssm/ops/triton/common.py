"""What the Triton kernels share.

They run compiled on a GPU; or interpreted, slowly, on a CPU, if TRITON_INTERPRET=1 was set in the environment
before triton was first imported.

A kernel is `@triton.jit` and, below that, `@no_type_check`: a checker of types that wraps functions (the
tests have one) would otherwise keep the interpreter from finding what the kernel calls.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, reduce
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Int
from torch import Tensor

TL_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


@triton.jit
@no_type_check
def then(decay, write, next_decay, next_write):
    """The map h -> decay h + write, and after it the next one: the combination that scans a recurrence."""
    return decay * next_decay, tl.fma(next_decay, write, next_write)


@triton.jit
@no_type_check
def then_unless_set(decay, write, is_set, next_decay, next_write, next_is_set):
    """The same where states may be set: `is_set` is not 0 if the map gives `write` whatever h is. (A decay of
    0 would do, but for an h that is infinite.)"""
    write = tl.where(next_is_set != 0, next_write, tl.fma(next_decay, write, next_write))
    return decay * next_decay, write, tl.maximum(is_set, next_is_set)


INTERPRETED = not isinstance(then, triton.runtime.JITFunction)


def accumulator(*tensors: Tensor | None) -> torch.dtype:
    """What is computed in: the widest of the tensors' dtypes, at least float32."""
    return reduce(torch.promote_types, (t.dtype for t in tensors if t is not None), torch.float32)


def check_runnable(*tensors: Tensor | None) -> None:
    """Raises ValueError unless the tensors lie on one device that the kernels can run on."""
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"a kernel needs its tensors on one device, got {sorted(map(str, devices))}.")
    (device,) = devices
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        raise ValueError(
            f"a Triton kernel needs tensors on a GPU, got {device}. "
            "(Or on a CPU, slowly, with TRITON_INTERPRET=1 set before triton is imported.)"
        )


def slots(positions: Sequence[int], length: int, device: torch.device) -> Int[Tensor, " pos"]:
    """For each position of a document its index in `positions`, or -1: how kernels know what to emit or set.

    Raises ValueError unless the positions are distinct and lie in 0..length - 1.
    """
    if len(set(positions)) != len(positions) or any(not 0 <= p < length for p in positions):
        raise ValueError(f"positions must be distinct and lie in 0..{length - 1}, got {list(positions)}.")
    slot = [-1] * length
    for index, position in enumerate(positions):
        slot[position] = index
    return on_device_once(tuple(slot), torch.int32, device)


@lru_cache(maxsize=256)
def on_device_once(numbers: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of these numbers, not to be written to: the same one every time, so that nothing waits for a
    copy from the host, which a CUDA graph could not record."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Kernels are launched on the current GPU: inside this, that of the tensor."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., object]:
    """The kernel on a grid of programs, to be called with its arguments (which no checker of types knows)."""
    return kernel[grid]
