"""A few rows times a matrix, as a token that is generated needs it: as fast as the matrix can be read."""

from torch import Tensor

from .addresses import ZEROS, addresses, array
from .arithmetic import REASSOCIATED, fma, kernel
from .threads import split

STREAMS = 4  # columns, or rows, a quarter of the matrix apart, read together: one does not fill the bus
BLOCK = 1024  # columns of a part, where rows are added up: long runs of memory, and sums in the first cache


def numba_matrix_product(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.detach(), b.detach()
    d_in, columns = b.shape
    rows = a.reshape(-1, d_in)
    y = a.new_empty((len(rows), columns))
    by_column = b.t()
    if by_column.is_contiguous():
        multiply_rows(rows, by_column, y)
    else:
        arrays = (tensor.contiguous().numpy() for tensor in (rows, b, y))
        split(_add, -(-columns // BLOCK), b.numel() * len(rows), *arrays)
    return y.view(*a.shape[:-1], columns)


def multiply_rows(rows: Tensor, columns: Tensor, y: Tensor) -> None:
    """rows columns^T into y, all of one dtype."""
    rows, columns = rows.contiguous(), columns.contiguous()
    n, d_in = columns.shape
    where = addresses(rows, columns, y)
    split(_dot, -(-n // STREAMS), n * d_in * len(rows), ZEROS[y.dtype], len(rows), n, d_in, *where)


@kernel
def _dot(first, last, zero, n_rows, n_columns, d_in, rows_at, columns_at, y_at):
    """Parts are those of `dot_columns`."""
    rows, columns = array(rows_at, (n_rows, d_in), zero), array(columns_at, (n_columns, d_in), zero)
    y = array(y_at, (n_rows, n_columns), zero)
    for r in range(n_rows):
        dot_columns(first, last, rows[r], columns, y[r])


@kernel(fastmath=REASSOCIATED)
def dot_columns(first, last, row, columns, y):
    """Part i is columns i, i + apart, ..., each of one piece in memory; those beyond the end are the last."""
    end, size = columns.shape
    apart = -(-end // STREAMS)
    zero = y.dtype.type(0)
    for i0 in range(first, last):
        i1, i2, i3 = min(i0 + apart, end - 1), min(i0 + 2 * apart, end - 1), min(i0 + 3 * apart, end - 1)
        c0, c1, c2, c3 = columns[i0], columns[i1], columns[i2], columns[i3]
        t0, t1, t2, t3 = zero, zero, zero, zero
        for j in range(size):
            x = row[j]
            t0 += c0[j] * x
            t1 += c1[j] * x
            t2 += c2[j] * x
            t3 += c3[j] * x
        y[i0], y[i1], y[i2], y[i3] = t0, t1, t2, t3


@kernel
def _add(first, last, rows, matrix, y):
    """Parts are blocks of columns, for which rows of the matrix are added up, STREAMS at a time."""
    apart = len(matrix) // STREAMS
    for part in range(first, last):
        begin, end = part * BLOCK, min(part * BLOCK + BLOCK, matrix.shape[1])
        for r in range(len(rows)):
            x, out = rows[r], y[r, begin:end]
            out[:] = 0
            for i0 in range(apart):
                i1, i2, i3 = i0 + apart, i0 + 2 * apart, i0 + 3 * apart
                x0, x1, x2, x3 = x[i0], x[i1], x[i2], x[i3]
                p0, p1 = matrix[i0, begin:end], matrix[i1, begin:end]
                p2, p3 = matrix[i2, begin:end], matrix[i3, begin:end]
                for j in range(end - begin):
                    out[j] = fma(x3, p3[j], fma(x2, p2[j], fma(x1, p1[j], fma(x0, p0[j], out[j]))))
            for i in range(STREAMS * apart, len(matrix)):
                xi, p = x[i], matrix[i, begin:end]
                for j in range(end - begin):
                    out[j] = fma(xi, p[j], out[j])
