"""The diagonal state space model against a dense one with both of each pair of conjugates, step by step."""

import itertools

import pytest
import torch

from hooked_ssm.ops import s4d
from hooked_ssm.ops.s4d import bilinear, powers, s4d_filter, s4d_last_state, s4d_response

H, N = 2, 3


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def system(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A, B, C with |A| between 0.5 and 1."""
    A, B, C = (draw(H, N, seed=seed + i) for i in range(3))
    return A / A.abs() * (0.5 + 0.5 * torch.linspace(0, 1, H * N, dtype=torch.float64).view(H, N)), B, C


def dense(A, B, C, x, state):
    """y and the last state, of the model with 2 N modes, [A, conj A]: its output is real as it is."""
    A, B, C = (torch.cat([p, p.conj()], dim=-1) for p in (A, B, C))
    h = torch.cat([state, state.conj()], dim=-1)
    y = []
    for x_t in x.unbind(1):
        h = torch.einsum("hnm,b...hm->b...hn", torch.diag_embed(A), h.movedim(1, -2)).movedim(-2, 1)
        h = h + (B.view(H, *[1] * (x.ndim - 3), -1) * x_t[..., None])
        y.append((h * C.view(H, *[1] * (x.ndim - 3), -1)).sum(-1))
    y = torch.stack(y, dim=1)
    assert y.imag.abs().max() < 1e-12
    return y.real, h[..., :N]


def ours(A, B, C, x, state):
    length = x.shape[1]
    K = s4d_filter(A, C * B, length)
    y = [sum(K[t - j].view(H, *[1] * (x.ndim - 3)) * x[:, j] for j in range(t + 1)) for t in range(length)]
    y = torch.stack(y, dim=1)
    return y + s4d_response(A, C, state, length), s4d_last_state(A, B, x, state)


# Around powers of two and the length of a block, 64.
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 130])
@pytest.mark.parametrize("dims", [(), (2,), (2, 3)], ids=str)
def test_filter_response_and_last_state_are_those_of_the_dense_model(length, dims):
    x = draw(2, length, H, *dims, seed=5, dtype=torch.float64)
    state = draw(2, H, *dims, N, seed=6)
    for got, wanted in zip(ours(*system(), x, state), dense(*system(), x, state), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_without_a_state_the_model_starts_from_zero():
    A, B, _ = system()
    x = draw(2, 70, H, 2, seed=5, dtype=torch.float64)
    zero = torch.zeros(2, H, 2, N, dtype=torch.complex128)
    torch.testing.assert_close(s4d_last_state(A, B, x), s4d_last_state(A, B, x, zero), rtol=1e-13, atol=0)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 64])
def test_blocks_of_any_length_give_the_same(block, monkeypatch):
    monkeypatch.setattr(s4d, "BLOCK", block)
    x, state = draw(2, 5, H, 2, seed=5, dtype=torch.float64), draw(2, H, 2, N, seed=6)
    for got, wanted in zip(ours(*system(), x, state), dense(*system(), x, state), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 5])
def test_gradients_are_those_of_finite_differences(length, monkeypatch):
    monkeypatch.setattr(s4d, "BLOCK", 2)
    x = draw(2, length, H, 2, seed=5, dtype=torch.float64)
    state = draw(2, H, 2, N, seed=6)
    inputs = [p.requires_grad_() for p in (*system(), x, state)]
    assert torch.autograd.gradcheck(ours, inputs, fast_mode=True)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9])
def test_powers_are_repeated_products(count):
    A, _, _ = system()
    taken, following = powers(A, count)
    products = list(itertools.accumulate([A] * count, torch.mul, initial=torch.ones_like(A)))
    torch.testing.assert_close(taken, torch.stack(products[:-1], dim=1), rtol=1e-13, atol=0)
    torch.testing.assert_close(following, products[-1], rtol=1e-13, atol=0)


def test_powers_in_float32_are_off_by_at_most_one_rounding_a_factor():
    """On the unit circle, where nothing decays."""
    angle = torch.tensor([[0.1, 1.0, 3.0]])
    A = torch.polar(torch.ones_like(angle), angle)
    exact = powers(A.to(torch.complex128), 4096)[0]
    error = (powers(A, 4096)[0] - exact).abs().amax((0, 2))
    assert (error <= torch.arange(4096) * 2**-24).all()


def test_bilinear_is_the_trapezoidal_rule():
    """h' - h = dt A (h + h') / 2 + dt B x"""
    A, B, _ = system()
    A, dt = A - 1, torch.tensor([0.1, 0.7], dtype=torch.float64)
    A_discrete, B_factor = bilinear(A, dt)
    h, x = draw(H, N, seed=8), 1.3
    after = A_discrete * h + B_factor * B * x
    torch.testing.assert_close(after - h, dt[:, None] * (A * (h + after) / 2 + B * x), rtol=1e-13, atol=1e-13)
