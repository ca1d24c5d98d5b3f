"""A few rows times a matrix, as a token that is generated needs it: as fast as the matrix can be read."""

from torch import Tensor

from .arithmetic import REASSOCIATED, kernel
from .threads import split

BLOCK = 256  # columns that a part adds up together


def numba_matrix_product(a: Tensor, b: Tensor) -> Tensor:
    rows = a.detach().reshape(-1, a.shape[-1]).contiguous()
    y = a.new_empty(len(rows), b.shape[1])
    work = b.numel() * len(rows)
    if b.t().is_contiguous():
        by_column = b.detach().t().numpy()
        split(_dot, len(by_column), work, rows.numpy(), by_column, y.numpy())
    else:
        by_row = b.detach().contiguous().numpy()
        split(_add, -(-b.shape[1] // BLOCK), work, rows.numpy(), by_row, y.numpy())
    return y.reshape(*a.shape[:-1], b.shape[1])


@kernel(fastmath=REASSOCIATED)
def _dot(first, last, rows, columns, y):
    """Parts are columns of the matrix, each of one piece in memory."""
    for i in range(first, last):
        column = columns[i]
        for r in range(len(rows)):
            row, total = rows[r], y.dtype.type(0)
            for j in range(len(column)):
                total += column[j] * row[j]
            y[r, i] = total


@kernel(fastmath=REASSOCIATED)
def _add(first, last, rows, matrix, y):
    """Parts are blocks of columns."""
    for part in range(first, last):
        begin, end = part * BLOCK, min(part * BLOCK + BLOCK, matrix.shape[1])
        for r in range(len(rows)):
            out = y[r, begin:end]
            out[:] = 0
            for i in range(len(matrix)):
                piece, x = matrix[i, begin:end], rows[r, i]
                for j in range(end - begin):
                    out[j] += x * piece[j]
