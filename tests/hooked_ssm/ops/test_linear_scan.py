"""linear_scan against the same recurrence as a Python loop under plain autograd, in float64."""

import inspect

import pytest
import torch

from hooked_ssm.ops import linear_scan

pytestmark = pytest.mark.usefixtures("backend")


def loop(decay, write, initial=None):
    h, states = initial, []
    for t in range(write.shape[1]):
        h = write[:, t] if h is None else decay[:, t] * h + write[:, t]
        states.append(h)
    return torch.stack(states, 1)


def sample(*shape, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    decay, write = (torch.randn(shape, generator=g, dtype=dtype) for _ in range(2))
    initial = torch.randn(shape[:1] + shape[2:], generator=g, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (0.7 * decay, write, initial)]


@pytest.mark.parametrize("shape", [(2, 7, 3, 4), (1, 5), (3, 1, 2), (2, 4, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("with_initial", [False, True], ids=["zero", "initial"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_states_and_gradients_are_those_of_the_loop(shape, with_initial, dtype):
    inputs = sample(*shape, dtype=dtype)[: 3 if with_initial else 2]
    expected, states = loop(*inputs), linear_scan(*inputs)
    torch.testing.assert_close(states, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    for got, want in zip(
        torch.autograd.grad(states, inputs, grad),
        torch.autograd.grad(expected, inputs, grad, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_gradcheck():
    assert torch.autograd.gradcheck(linear_scan, sample(2, 4, 3))


def test_whole_is_two_halves(backend):
    """To the bit where positions are taken one after the other."""
    decay, write, initial = sample(2, 9, 3)
    first = linear_scan(decay[:, :4], write[:, :4], initial)
    second = linear_scan(decay[:, 4:], write[:, 4:], first[:, -1])
    tolerance = 0 if backend == "numba" else 1e-13
    halves = torch.cat([first, second], 1)
    torch.testing.assert_close(linear_scan(decay, write, initial), halves, rtol=tolerance, atol=tolerance)


def test_memory_order_of_the_inputs_changes_no_number():
    decay, write, initial = (tensor.detach() for tensor in sample(2, 5, 3, 4))
    time_major = [tensor.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2) for tensor in (decay, write)]
    assert torch.equal(linear_scan(*time_major, initial), linear_scan(decay, write, initial))


def test_no_positions_give_no_states():
    states = linear_scan(torch.zeros(2, 0, 3), torch.zeros(2, 0, 3))
    assert states.shape == (2, 0, 3)


def test_mismatched_inputs_raise_with_both_shapes():
    scan = inspect.unwrap(linear_scan)  # beneath the type checker, if the tests run with one
    with pytest.raises(ValueError, match=r"got \(2, 5, 3\) and \(2, 5, 4\)"):
        scan(torch.zeros(2, 5, 3), torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match=r"\(2, 3\), got \(1, 3\)"):
        scan(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3), torch.zeros(1, 3))
    with pytest.raises(TypeError, match=r"torch.float32, torch.float64"):
        scan(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3, dtype=torch.float64))
