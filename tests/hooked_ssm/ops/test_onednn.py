"""Products by oneDNN against float64, and where they are left to torch."""

import warnings

import pytest
import torch
from torch.autograd import forward_ad

from hooked_ssm import HookedSSM, zoo
from hooked_ssm.ops import onednn
from hooked_ssm.ops.memory import matrix_product

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)
# Sums of up to 300 rounded products of numbers of size 1, in another order.
CLOSE = {"rtol": 1e-5, "atol": 3e-4}


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """Whatever the processor."""
    monkeypatch.setattr(onednn, "faster_here", lambda: True)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [(200,), (4, 50)], ids=["matrix", "batch"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients(rows, transposed, with_bias):
    a, b = random(*rows, 300), random(70, 300, seed=1).t() if transposed else random(300, 70, seed=1)
    inputs = [a, b, random(70, seed=2)] if with_bias else [a, b]
    single, double = ([x.to(dtype).requires_grad_() for x in inputs] for dtype in (a.dtype, torch.float64))
    weight = random(*rows, 70, seed=3)
    assert onednn.takes(single[0], single[1])
    y, wanted = onednn.product(*single), double[0] @ double[1] + (double[2] if with_bias else 0)
    torch.testing.assert_close(y.double(), wanted, **CLOSE)
    # Of something that is not linear, so that a second derivative is there.
    first = torch.autograd.grad((y.sin() * weight).sum(), single, create_graph=True)
    first_wanted = torch.autograd.grad((wanted.sin() * weight).sum(), double, create_graph=True)
    for got, want in zip(first, first_wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=3e-3)
    second = torch.autograd.grad(first[0].sum(), single)
    second_wanted = torch.autograd.grad(first_wanted[0].sum(), double)
    for got, want in zip(second, second_wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3 * want.abs().max().item())


def test_bits_depend_neither_on_threads_nor_on_other_rows():
    a, b, before = random(256, 300), random(300, 128, seed=1), torch.get_num_threads()
    y = onednn.product(a, b)
    torch.set_num_threads(3 - min(before, 2))
    try:
        assert torch.equal(onednn.product(a, b), y)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(onednn.product(a[:9], b), y[:9])


def test_what_it_cannot_do_or_does_not_pay_for_is_left_to_torch():
    a, b = random(200, 300), random(300, 70, seed=1)
    assert onednn.takes(a, b) and onednn.takes(a, b.requires_grad_())
    assert not onednn.takes(a[:5], b)
    assert not onednn.takes(a.double(), b.double())
    assert not onednn.takes(a[:, ::3].expand(200, 100), random(300, 70)[::3])
    assert not onednn.takes(random(4000, 8), random(8, 3000))
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn.takes(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, about another processor
        with torch.backends.mkldnn.flags(enabled=False):
            assert not onednn.takes(a, b)
    with forward_ad.dual_level():
        assert not onednn.takes(a, b)
    b = b.detach()
    by_rows = torch.func.vmap(lambda x: matrix_product(x, b))(a.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(by_rows, a @ b, **CLOSE)


def test_an_elsewhere_is_elsewhere(monkeypatch):
    monkeypatch.setattr(onednn, "faster_here", lambda: False)
    assert not onednn.takes(random(200, 300), random(300, 70))


@pytest.mark.parametrize("preset", ["attention", "mamba"])
def test_a_model_is_the_same_to_rounding(preset, monkeypatch):
    model = HookedSSM(zoo.PRESETS[preset](d_model=64, n_layers=2, d_vocab=64, d_mlp=64, seed=0))
    tokens = torch.randint(0, 64, (16, 20), generator=torch.Generator().manual_seed(0))
    calls = []
    linear_pointwise = onednn.product
    monkeypatch.setattr(onednn, "product", lambda *x: calls.append(1) or linear_pointwise(*x))
    loss = model(tokens, return_type="loss")
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert calls
    monkeypatch.setattr(onednn, "faster_here", lambda: False)
    plain = model(tokens, return_type="loss")
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-6)
    plain_grads = torch.autograd.grad(plain, list(model.parameters()), allow_unused=True)
    for got, want in zip(grads, plain_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)
