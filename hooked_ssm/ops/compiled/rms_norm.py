"""`rms_norm` of a few rows, compiled."""

import numpy as np
from torch import Tensor

from .addresses import ZEROS, addresses, array
from .arithmetic import REASSOCIATED, kernel


def numba_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    y, width = x.new_empty(x.shape), len(weight)
    _run(ZEROS[x.dtype], x.numel() // width, width, eps, *addresses(x, weight, y))
    return y


@kernel(fastmath=REASSOCIATED)
def _run(zero, n_rows, width, eps, x_at, weight_at, y_at):
    x, weight, y = (
        array(x_at, (n_rows, width), zero),
        array(weight_at, (width,), zero),
        array(y_at, (n_rows, width), zero),
    )
    for r in range(n_rows):
        row, out, square = x[r], y[r], zero
        for i in range(len(row)):
            square += row[i] * row[i]
        scale = y.dtype.type(1) / np.sqrt(square / y.dtype.type(len(row)) + y.dtype.type(eps))
        for i in range(len(row)):
            out[i] = row[i] * scale * weight[i]
