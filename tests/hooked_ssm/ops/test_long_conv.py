"""long_conv, in its direct and its Fourier form, against the sum written as a loop, in float64."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hooked_ssm.ops import long_conv
from hooked_ssm.ops.long_conv import (
    DIRECT_POSITIONS,
    fast_length,
    fft_conv,
    lagwise_conv,
    toeplitz,
    toeplitz_conv,
)


def loop(x: Tensor, filter: Tensor) -> Tensor:
    """y_i = sum_{j <= i} K_{i-j} x_j, each y_i from its own inputs."""
    filter = filter.expand(len(x), *filter.shape[-2:])
    lags = filter.shape[1]
    y = []
    for i in range(x.shape[1]):
        first = max(0, i - lags + 1)
        y.append((filter[:, : i - first + 1].flip(1) * x[:, first : i + 1]).sum(1))
    return torch.stack(y, dim=1)


def sample(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def sample_both(batch: int, length: int, channels: int, *, lags: int | None = None, per_document: bool):
    filter_shape = (batch, lags or length, channels) if per_document else (lags or length, channels)
    return sample(batch, length, channels), sample(*filter_shape, seed=1)


def agree(got: Tensor, wanted: Tensor) -> None:
    """To rounding: sums of up to some 130 terms of size 1, and a transform's log n stages, in float64."""
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


shared_or_not = pytest.mark.parametrize("per_document", [False, True], ids=["shared", "per document"])
LENGTHS = [1, 2, 7, DIRECT_POSITIONS - 1, DIRECT_POSITIONS, DIRECT_POSITIONS + 1, 130]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", LENGTHS)
@shared_or_not
def test_values_and_gradients_are_those_of_the_loop(batch, length, per_document):
    x, filter = sample_both(batch, length, 3, per_document=per_document)
    got, wanted = long_conv(x, filter), loop(x, filter)
    agree(got, wanted)
    grad = sample(batch, length, 3, seed=2)
    ours = torch.autograd.grad(got, (x, filter), grad)
    theirs = torch.autograd.grad(wanted, (x, filter), grad)
    for one, other in zip(ours, theirs, strict=True):
        agree(one, other)


@pytest.mark.parametrize("length", [9, 130])
def test_it_is_pytorchs_depthwise_convolution(length):
    x, filter = sample_both(3, length, 4, per_document=False)
    padded = F.pad(x.transpose(1, 2), (length - 1, 0))
    wanted = F.conv1d(padded, filter.t().flip(1).unsqueeze(1), groups=4).transpose(1, 2)
    got = long_conv(x, filter)
    agree(got, wanted)
    grad = sample(3, length, 4, seed=2)
    ours = torch.autograd.grad(got, (x, filter), grad)
    for one, other in zip(ours, torch.autograd.grad(wanted, (x, filter), grad), strict=True):
        agree(one, other)


@pytest.mark.parametrize("lags", [1, 4, 15])
@pytest.mark.parametrize("last", [1, 4, 9])
@pytest.mark.parametrize("form", ["direct", "fft"])
@shared_or_not
def test_every_form_is_the_loop_for_any_number_of_lags_and_outputs(form, lags, last, per_document):
    x, filter = sample_both(2, 9, 3, lags=lags, per_document=per_document)
    conv = fft_conv if form == "fft" else lagwise_conv if per_document else toeplitz_conv
    got, wanted = conv(x, filter, last), loop(x, filter)[:, 9 - last :]
    agree(got, wanted)
    grad = sample(2, last, 3, seed=2)
    ours = torch.autograd.grad(got, (x, filter), grad)
    theirs = torch.autograd.grad(wanted, (x, filter), grad)
    for one, other in zip(ours, theirs, strict=True):
        agree(one, other)


@pytest.mark.parametrize("conv", [toeplitz_conv, lagwise_conv, fft_conv])
def test_gradcheck(conv):
    x, filter = sample_both(2, 5, 3, per_document=conv is lagwise_conv)
    assert torch.autograd.gradcheck(lambda x, filter: conv(x, filter, 5), (x, filter))
    assert torch.autograd.gradcheck(lambda x, filter: conv(x, filter, 2), (x, filter))


@pytest.mark.parametrize("pieces", [[1] * 5, [3, 64, 70, 1], [100, 30], [65, 65]], ids=str)
@shared_or_not
def test_pieces_are_the_whole(pieces, per_document):
    x, filter = sample_both(2, sum(pieces), 3, per_document=per_document)
    past, outputs = None, []
    for piece in x.split(pieces, dim=1):
        outputs.append(long_conv(piece, filter, past))
        past = piece if past is None else torch.cat([past, piece], dim=1)
    pieced, whole = torch.cat(outputs, dim=1), long_conv(x, filter)
    agree(pieced, whole)
    grad = sample(*whole.shape, seed=2)
    ours = torch.autograd.grad(pieced, (x, filter), grad)
    for one, other in zip(ours, torch.autograd.grad(whole, (x, filter), grad), strict=True):
        agree(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@shared_or_not
def test_short_pieces_are_exactly_causal(dtype, per_document):
    x, filter = (t.detach().to(dtype) for t in sample_both(3, DIRECT_POSITIONS, 5, per_document=per_document))
    wanted = long_conv(x, filter)
    for t in (1, 20, DIRECT_POSITIONS - 1):
        changed = x.clone()
        changed[:, t:] *= 100
        assert torch.equal(long_conv(changed, filter)[:, :t], wanted[:, :t])


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-15)])
def test_long_pieces_are_causal_to_rounding(dtype, limit):
    """The transform mixes all positions: what leaks is a rounding error of the largest output."""
    x, filter = (t.detach().to(dtype) for t in sample_both(3, 1000, 5, per_document=False))
    changed = x.clone()
    changed[:, 500:] += 1
    leak = (long_conv(changed, filter) - long_conv(x, filter))[:, :500].abs().max()
    assert 0 < leak <= limit * long_conv(changed, filter).abs().max()


@pytest.mark.parametrize("length", [9, 100])
@shared_or_not
def test_float32_is_near_float64(length, per_document):
    x, filter = (t.detach() for t in sample_both(3, length, 5, per_document=per_document))
    got = long_conv(x.float(), filter.float())
    assert got.dtype == torch.float32
    assert (got - long_conv(x, filter)).abs().max() < 1e-6 * long_conv(x, filter).abs().max()


@pytest.mark.parametrize("length", [9, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@shared_or_not
def test_half_precision_is_computed_in_float32(length, dtype, per_document):
    x, filter = sample_both(3, length, 5, per_document=per_document)
    x, filter = (t.detach().to(dtype).requires_grad_() for t in (x, filter))
    y = long_conv(x, filter)
    assert y.dtype == dtype
    assert torch.equal(y, long_conv(x.float(), filter.float()).to(dtype))
    assert {g.dtype for g in torch.autograd.grad(y.sum(), (x, filter))} == {dtype}


def test_a_filter_with_zeros_beyond_is_the_shorter_filter():
    x, filter = sample_both(2, 8, 3, lags=5, per_document=False)
    longer = torch.cat([filter, torch.zeros(7, 3, dtype=filter.dtype)])
    assert torch.equal(long_conv(x, filter), long_conv(x, longer))


def test_inputs_may_lie_in_memory_in_any_order():
    x, filter = sample_both(4, 6, 3, per_document=True)
    strided = x.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0)
    agree(long_conv(strided, filter.detach()), loop(x, filter).detach())
    agree(long_conv(strided, filter.detach()[0]), loop(x, filter[0]).detach())


def test_outputs_are_dense():
    for length in (9, 100):
        for per_document in (False, True):
            y = long_conv(*sample_both(2, length, 3, per_document=per_document))
            assert y.is_contiguous()


@pytest.mark.parametrize("rows", [1, 3, 5, None])
def test_toeplitz_is_the_matrix_of_the_convolution(rows):
    x, filter = sample_both(2, 5, 3, per_document=False)
    T = toeplitz(filter.t(), rows)
    assert (toeplitz(filter.t()).triu(1) == 0).all()
    agree(torch.einsum("cij,bjc->bic", T, x), loop(x, filter)[:, -(rows or 5) :])


@pytest.mark.parametrize("least", [1, 2, 3, 31, 71, 127, 128, 129, 2047, 5000])
def test_fast_lengths_are_just_long_enough_and_have_small_factors(least):
    n = fast_length(least)
    assert least <= n <= 1.25 * least + 1
    for factor in (2, 3, 5):
        while n % factor == 0:
            n //= factor
    assert n == 1


def test_mismatched_inputs_raise_with_both_shapes():
    conv = inspect.unwrap(long_conv)  # beneath the type checker, if the tests run with one
    x = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match=r"3 channels must be \[lag, 3\].*got \(5, 4\)"):
        conv(x, torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"got \(1, 2, 5, 3\)"):
        conv(x, torch.zeros(1, 2, 5, 3))
    with pytest.raises(ValueError, match=r"2 documents want 2, got 4"):
        conv(x, torch.zeros(4, 5, 3))
    with pytest.raises(ValueError, match=r"past must be \[batch=2, past, channel=3\], got \(1, 4, 3\)"):
        conv(x, torch.zeros(9, 3), torch.zeros(1, 4, 3))
    with pytest.raises(TypeError, match=r"floating point, got torch.float32, torch.int64"):
        conv(x, torch.zeros(9, 3, dtype=torch.int64))
