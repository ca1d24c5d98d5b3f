"""The shift state space model's filter against numpy's correlation, and against the model step by step."""

import numpy as np
import pytest
import torch

from hooked_ssm.ops.shift_filter import shift_filter


def draw(channels: int, d_state: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    B, C = (torch.randn(channels, d_state, dtype=torch.float64, generator=generator) for _ in range(2))
    return B, C


@pytest.mark.parametrize("d_state", [1, 2, 7, 16])
@pytest.mark.parametrize("length", [1, 2, 5, 16, 20])
def test_it_is_the_correlation(d_state, length):
    B, C = draw(3, d_state)
    wanted = np.stack(
        [np.correlate(c, b, "full")[d_state - 1 :] for b, c in zip(B.numpy(), C.numpy())], axis=1
    )
    got = shift_filter(B, C, length)
    assert got.shape == (min(length, d_state), 3)
    np.testing.assert_allclose(got.numpy(), wanted[:length], rtol=0, atol=1e-14 * d_state)


def test_its_convolution_is_the_shift_model():
    B, C = draw(3, 4)
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kappa = shift_filter(B, C, 9)
    s = torch.zeros_like(B)
    for t in range(9):
        s = torch.cat([torch.zeros(3, 1, dtype=s.dtype), s[:, :-1]], dim=1) + B * x[t, :, None]
        wanted = (C * s).sum(1)
        got = sum(kappa[tau] * x[t - tau] for tau in range(min(len(kappa), t + 1)))
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("length", [1, 3, 8])
def test_gradients_are_those_of_finite_differences(length):
    B, C = (p.requires_grad_() for p in draw(2, 5))
    assert torch.autograd.gradcheck(lambda B, C: shift_filter(B, C, length), (B, C))
