"""Tensors handed to kernels by address: to make arrays of NumPy's of them takes longer than some kernels."""

from typing import Any

import numpy as np
import torch
from numba import carray, types  # pyright: ignore[reportPrivateImportUsage]
from numba.extending import intrinsic, overload
from torch import Tensor

from .arithmetic import unchecked

ZEROS = {torch.float32: np.float32(0), torch.float64: np.float64(0)}
"""By which a kernel is told the dtype."""


def addresses(*tensors: Tensor) -> list[int]:
    """Of tensors of one piece each, which must live until the kernel has run."""
    for tensor in tensors:
        assert tensor.is_contiguous(), tensor.stride()
    return [tensor.data_ptr() for tensor in tensors]


def array(address: Any, shape: Any, zero: Any) -> Any:
    """The array of this shape, and of zero's dtype, at an address."""
    raise NotImplementedError("this is for compiled code")


@overload(array)
@unchecked
def _overload_array(address, shape, zero):
    return lambda address, shape, zero: carray(_pointer(address, zero), shape)


@intrinsic
@unchecked
def _pointer(typing_context, address, zero):
    pointer = types.CPointer(zero)

    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(address, zero), code
