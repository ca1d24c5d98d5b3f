"""Scans by groups against a loop over positions, at lengths around their borders."""

import pytest
import torch

from hooked_ssm.ops import linear_scan, scan_with_edits, use_backend
from hooked_ssm.ops.grouped_scan import GROUP, scan_after

LENGTHS = [1, 2, GROUP, GROUP + 1, 2 * GROUP + 1, GROUP**2 + 1, GROUP**2 + GROUP + 2, GROUP**3 + 30]
each_length = pytest.mark.parametrize("length", LENGTHS)


def loop(before, decay, write, set_at=None, values=None):
    states, h = [], before
    for t in range(write.shape[1]):
        h = decay[:, t] * h + write[:, t]
        h = h if set_at is None else torch.where(set_at[:, t], values[:, t], h)
        states.append(h)
    return torch.stack(states, 1)


def sample(length, dtype=torch.float64):
    """before, decay, write, set_at, values"""
    g = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=dtype)

    decay = 0.7 * normal(2, length, 3, 2)
    decay[:, length // 2] = 0
    set_at = torch.rand((2, length, 3, 2), generator=g) < 3 / length
    return normal(2, 3, 2), decay, normal(2, length, 3, 2), set_at, normal(2, length, 3, 2)


@each_length
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("edited", [False, True], ids=["plain", "set"])
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_states_are_those_of_the_loop(length, dtype, edited, backwards):
    before, decay, write, *edits = sample(length, dtype)
    edits = edits if edited else []
    turned = [x.flip(1) if backwards else x for x in (decay, write, *edits)]
    want = loop(before, *turned)
    out = torch.empty_like(write)
    scan_after(before, decay, write, out, *edits, backwards=backwards)
    torch.testing.assert_close(out, want.flip(1) if backwards else want, rtol=1e-12, atol=1e-12)
    scan_after(before, decay, write, write, *edits, backwards=backwards)
    assert torch.equal(write, out)


@each_length
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("edited", [False, True], ids=["plain", "set"])
def test_gradients_are_those_of_the_loop(length, dtype, edited):
    before, decay, write, set_at, values = sample(length, dtype)
    wrt = [x.requires_grad_() for x in (decay, write, before, values)]
    with use_backend("torch"):
        if edited:
            states = scan_with_edits(decay, write, lambda h: torch.where(set_at, values, h), before)
        else:
            states = linear_scan(decay, write, before)
    want = loop(before, decay, write, *([set_at, values] if edited else []))
    grad = torch.randn(want.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    got, wanted = (torch.autograd.grad(h, wrt, grad, materialize_grads=True) for h in (states, want))
    for one, other in zip((states, *got), (want, *wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(2, 1, 3, 2), (1, 130, 1, 2), (2, 130, 3, 1), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("time_major", [False, True])
def test_decays_that_repeat_along_axes_are_like_any(shape, time_major):
    before, _, write, set_at, values = sample(130)
    if time_major:
        write = write.transpose(0, 1).contiguous().transpose(0, 1)
    decay = torch.rand(shape, dtype=torch.float64).expand(2, 130, 3, 2)
    with use_backend("torch"):
        states = scan_with_edits(decay, write, lambda h: torch.where(set_at, values, h), before)
    assert states.stride() == write.stride()
    torch.testing.assert_close(states, loop(before, decay, write, set_at, values), rtol=1e-12, atol=1e-12)


def test_single_precision_loses_no_more_than_a_loop_does():
    """Decays next to 1, over which rounding errors add up: largest error at most twice that of the loop."""
    g = torch.Generator().manual_seed(0)
    decay = 1 - 0.01 * torch.rand((2, 700, 40), generator=g)
    write = torch.randn((2, 700, 40), generator=g)
    before = torch.randn((2, 40), generator=g)
    exact = loop(before.double(), decay.double(), write.double())
    with use_backend("torch"):
        states = linear_scan(decay, write, before)
    error, error_of_loop = ((h - exact).abs().max() for h in (states, loop(before, decay, write)))
    assert 0 < error <= 2 * error_of_loop


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_single_and_rounded_once(dtype):
    before, decay, write = (x.to(dtype).requires_grad_() for x in sample(70)[:3])
    wide = [x.detach().float().requires_grad_() for x in (decay, write, before)]
    with use_backend("torch"):
        states, want = linear_scan(decay, write, before), linear_scan(*wide)
    assert torch.equal(states, want.to(dtype))
    grad = torch.autograd.grad(states.sum(), write)[0]
    assert torch.equal(grad, torch.autograd.grad(want.sum(), wide[1])[0].to(dtype))
