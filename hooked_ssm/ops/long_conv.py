"""The long convolution: causal, per channel, with a filter as long as the document.

    y_i = sum_{j <= i} K_{i-j} x_j

Short pieces are convolved directly: by a matrix product with the filter's Toeplitz matrix (one a channel,
shared by the batch), or lag by lag where every document has a filter of its own, because such a matrix would
be read only once. That is exactly causal: nothing of a later input reaches an output. Long pieces go through
the Fourier transform, which leaves rounding errors of the size of the largest output everywhere, earlier
positions included. Gradients, with g_i the one at y_i, are correlations:

    dL/dx_j = sum_{i >= j} K_{i-j} g_i        dL/dK_t = sum_{i >= t} g_i x_{i-t}
"""

from functools import reduce

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

DIRECT_POSITIONS = 64
"""Pieces up to this length are convolved directly.

Found by timing both forms on one thread, with and without the backward pass, at 36 to 1024 positions, 64 to
512 channels and batches of 1, 8 and 32: `python -m benchmarks.long_conv`. With 32 documents, as in training,
they are level at 64 to 96 positions. With few documents the Fourier form is quicker from some 36 on; up to
here, the direct one is taken all the same, because it is exactly causal.
"""


def long_conv(
    x: Float[Tensor, "batch pos channel"],
    filter: Float[Tensor, "lag channel"] | Float[Tensor, "batch lag channel"],
    past: Float[Tensor, "batch past channel"] | None = None,
) -> Float[Tensor, "batch pos channel"]:
    """y at the positions of x, which follow those of `past`. Differentiable once, in all arguments.

    Entry t of the filter is what reaches t places on; a filter with fewer entries than positions is zero
    beyond them. Half precision is computed in float32, and y comes back in the dtype of x.
    """
    _check_shapes(x, filter, past)
    length = x.shape[1]
    whole = x if past is None else torch.cat([past, x], dim=1)
    dtype = reduce(torch.promote_types, (whole.dtype, filter.dtype), torch.float32)
    filter = filter[..., : whole.shape[1], :].to(dtype)
    if length > DIRECT_POSITIONS:
        conv = fft_conv
    else:
        conv = toeplitz_conv if filter.ndim == 2 else lagwise_conv
    return conv(whole.to(dtype), filter, length).to(x.dtype)


def _check_shapes(x: Tensor, filter: Tensor, past: Tensor | None) -> None:
    batch, _, channels = x.shape
    if filter.shape[-1] != channels or filter.ndim not in (2, 3):
        raise ValueError(
            f"the filter of a long convolution over {channels} channels must be [lag, {channels}] or "
            f"[batch, lag, {channels}], got {tuple(filter.shape)}."
        )
    if filter.ndim == 3 and len(filter) != batch:
        raise ValueError(f"with a filter a document, {batch} documents want {batch}, got {len(filter)}.")
    given = [x, filter] if past is None else [x, filter, past]
    if not all(tensor.is_floating_point() for tensor in given):
        got = ", ".join(str(tensor.dtype) for tensor in given)
        raise TypeError(f"a long convolution's tensors must be of floating point, got {got}.")
    if past is not None and (past.shape[0], past.shape[2]) != (batch, channels):
        raise ValueError(f"past must be [batch={batch}, past, channel={channels}], got {tuple(past.shape)}.")


def toeplitz(
    filter: Float[Tensor, "*batch lag"], rows: int | None = None
) -> Float[Tensor, "*batch dest src"]:
    """T_ij = K_{i-j} for j <= i, else 0; all of it, or its last `rows` rows. A new tensor."""
    length = filter.shape[-1]
    rows = length if rows is None else rows
    # Row i is the reversed filter, followed by zeros, from entry length - 1 - i on.
    last_first = F.pad(filter.flip(-1), (0, max(rows - 1, 0))).unfold(-1, length, 1)
    return last_first.flip(-2)


def toeplitz_conv(
    x: Float[Tensor, "batch pos channel"], filter: Float[Tensor, "lag channel"], last: int
) -> Float[Tensor, "batch last channel"]:
    """y at the last positions, by a matrix product. All in one dtype, as in the other forms."""
    filter = F.pad(filter, (0, 0, 0, x.shape[1] - len(filter)))
    return _ToeplitzConv.apply(x, filter, last)  # pyright: ignore[reportReturnType]


def lagwise_conv(
    x: Float[Tensor, "batch pos channel"], filter: Float[Tensor, "batch lag channel"], last: int
) -> Float[Tensor, "batch last channel"]:
    """y at the last positions, one lag after the other, with a filter a document."""
    return _LagwiseConv.apply(x, filter, last)  # pyright: ignore[reportReturnType]


def fft_conv(
    x: Float[Tensor, "batch pos channel"],
    filter: Float[Tensor, "lag channel"] | Float[Tensor, "batch lag channel"],
    last: int,
) -> Float[Tensor, "batch last channel"]:
    """y at the last positions, by the Fourier transform of all."""
    return _FFTConv.apply(x, filter, last)  # pyright: ignore[reportReturnType]


def _channels_first(x: Tensor) -> Tensor:
    """[batch, pos, channel] to [channel, batch, pos], contiguous."""
    # As one transposed matrix, for which torch has a blocked copy: twice as fast as a permutation of three.
    return x.reshape(-1, x.shape[2]).t().contiguous().view(x.shape[2], *x.shape[:2])


def _channels_last(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).t().contiguous().view(*x.shape[1:], len(x))


class _ToeplitzConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, filter, last):
        x, filter = _channels_first(x), filter.t().contiguous()
        ctx.save_for_backward(x, filter)
        ctx.last = last
        return _channels_last(x @ toeplitz(filter, last).mT)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, filter = ctx.saved_tensors
        grad, grad_x, grad_filter = _channels_first(grad), None, None
        if ctx.needs_input_grad[0]:
            grad_x = _channels_last(grad @ toeplitz(filter, ctx.last))
        if ctx.needs_input_grad[1]:
            grad_filter = _sum_diagonals(grad.mT @ x).t()
        return grad_x, grad_filter, None


def _sum_diagonals(matrix: Tensor) -> Tensor:
    """From [channel, rows, length], the last rows of a square, entry t the sum of the t-th diagonal below."""
    channels, rows, length = matrix.shape
    # Rows of `width` entries, read as rows of one more, are each moved one to the left of the row before.
    width = length + rows - 1
    memory = matrix.new_zeros(channels, rows * (width + 1))
    memory[:, : rows * width].view(channels, rows, width)[..., rows - 1 :] = matrix
    return memory.view(channels, rows, width + 1).sum(1)[:, :length].flip(1)


class _LagwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, filter, last):
        ctx.save_for_backward(x, filter)
        y = x.new_zeros(len(x), last, x.shape[2])
        for k, to, source in _lags(x, filter, last):
            y[:, to].addcmul_(filter[:, k], x[:, source])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, filter = ctx.saved_tensors
        grad_x, grad_filter = torch.zeros_like(x), torch.zeros_like(filter)
        for k, to, source in _lags(x, filter, grad.shape[1]):
            grad_x[:, source].addcmul_(filter[:, k], grad[:, to])
            grad_filter[:, k] = (grad[:, to] * x[:, source]).sum(1, keepdim=True)
        return grad_x, grad_filter, None


def _lags(x: Tensor, filter: Tensor, last: int) -> list[tuple[slice, slice, slice]]:
    """For every lag: itself, which outputs (of the last) it reaches, and from which inputs."""
    length = x.shape[1]
    begins = [(lag, max(length - last, lag)) for lag in range(min(filter.shape[1], length))]
    return [
        (slice(lag, lag + 1), slice(begin - (length - last), last), slice(begin - lag, length - lag))
        for lag, begin in begins
    ]


class _FFTConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, filter, last):
        length, lags = x.shape[1], filter.shape[-2]
        size = fast_length(length + lags - 1)
        ctx.sizes = size, length, lags, last
        x = torch.fft.rfft(_channels_first(x), n=size)
        filter = torch.fft.rfft(_channels_first(filter.view(-1, *filter.shape[-2:])), n=size)
        ctx.save_for_backward(x, filter)
        return _channels_last(torch.fft.irfft(x * filter, n=size)[..., length - last : length])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, filter = ctx.saved_tensors
        size, length, lags, last = ctx.sizes
        grad = torch.fft.rfft(F.pad(_channels_first(grad), (length - last, 0)), n=size)
        grad_x = grad_filter = None
        if ctx.needs_input_grad[0]:
            grad_x = _channels_last(torch.fft.irfft(grad * filter.conj(), n=size)[..., :length])
        if ctx.needs_input_grad[1]:
            products = (grad * x.conj()).sum_to_size(filter.shape)
            grad_filter = _channels_last(torch.fft.irfft(products, n=size)[..., :lags])
        return grad_x, grad_filter, None


def fast_length(least: int) -> int:
    """The smallest size from `least` on that is 1, 3, 5, 9 or 15 times a power of two: fast to transform."""
    return min(odd << max(0, (-(-least // odd) - 1).bit_length()) for odd in (1, 3, 5, 9, 15))
