"""The convolution's kernels against the reference in float64: outputs and every gradient."""

import pytest
import torch

pytest.importorskip("triton")

from hooked_ssm.ops.depthwise_conv import torch_depthwise_conv
from hooked_ssm.ops.triton import depthwise_conv as kernels
from hooked_ssm.ops.triton.depthwise_conv import triton_depthwise_conv

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# batch, positions, channels, taps; tiles are cut to 4 positions of 4 channels
SHAPES = [(1, 1, 1, 1), (2, 1, 3, 4), (1, 9, 6, 4), (2, 4, 4, 3), (1, 3, 5, 7), (2, 5, 1, 2)]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    whole = kernels._tile

    def cut(length, channels, taps, dtype):
        high, wide, options = whole(length, channels, taps, dtype)
        high, wide = min(4, high), min(4, wide)
        return high, wide, options | {"T": high, "D": wide}

    monkeypatch.setattr(kernels, "_tile", cut)


def sample(batch, pos, channels, taps, dtype=torch.float64):
    x = torch.randn(batch, pos + taps - 1, channels, dtype=dtype)
    return [
        t.requires_grad_()
        for t in (x, torch.randn(channels, 1, taps, dtype=dtype), torch.randn(channels, dtype=dtype))
    ]


def results(conv, inputs, wrt):
    y = conv(*inputs)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y, *torch.autograd.grad(y, wrt, grad.to(y))]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_every_gradient_are_the_references(shape, bias):
    x, weight, b = sample(*shape)
    inputs = [x, weight, b if bias else None]
    wrt = inputs if bias else inputs[:2]
    want = results(torch_depthwise_conv, inputs, wrt)
    moved = [None if t is None else t.detach().to(DEVICE).requires_grad_() for t in inputs]
    got = results(triton_depthwise_conv, moved, moved if bias else moved[:2])
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-12, atol=1e-12)


def test_what_does_not_lie_contiguous_in_memory():
    x, weight, bias = (t.detach() for t in sample(2, 5, 6, 3))
    want = torch_depthwise_conv(x, weight, bias)
    inputs = x.mT.contiguous().mT, weight.permute(2, 1, 0).contiguous().permute(2, 1, 0), bias
    torch.testing.assert_close(triton_depthwise_conv(*(t.to(DEVICE) for t in inputs)).cpu(), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_summed_in_single(dtype):
    inputs = [t.detach().to(dtype) for t in sample(2, 9, 6, 4)]
    want = torch_depthwise_conv(*(t.double() for t in inputs))
    got = triton_depthwise_conv(*(t.to(DEVICE) for t in inputs))
    assert got.dtype == dtype
    # one rounding, at the end
    torch.testing.assert_close(got.cpu().double(), want, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_no_document_and_no_position():
    for shape in ((0, 3, 4, 2), (2, 0, 4, 2)):
        x, weight, bias = (t.detach().to(DEVICE).requires_grad_() for t in sample(*shape))
        y = triton_depthwise_conv(x, weight, bias)
        assert y.shape == shape[:3]
        assert not any(grad.any() for grad in torch.autograd.grad(y.sum(), (x, weight, bias)))
