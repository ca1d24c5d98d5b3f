"""Nothing is computed from what memory held before: torch fills new memory with NaN here."""

import pytest
import torch

from hooked_ssm import HookedSSM, zoo
from hooked_ssm.ops import delta_rule, memory, selective_scan, use_backend


@pytest.fixture
def filled():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # which fills what is uninitialised
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.empty(3).isnan().all() and torch.ones(2).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("looked_at", [False, True], ids=["idle", "states looked at"])
@pytest.mark.parametrize("preset", zoo.PRESETS)
def test_logits_and_gradients_of_every_architecture(preset, looked_at, filled):
    model = HookedSSM(zoo.PRESETS[preset](d_model=16, n_layers=2, d_vocab=7, n_ctx=16, seed=0))
    states = [name for name in model.hook_dict if name.endswith("mixer.hook_ssm_state")] if looked_at else []
    with model.hooks(fwd_hooks=[(name, lambda state, hook: None) for name in states]):
        logits, loss = model(torch.randint(7, (2, 11)), return_type="both")
    loss.backward()
    assert logits.isfinite().all()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_scans_and_delta_rules(dtype, filled):
    def normal(*shape):
        return torch.randn(shape, dtype=dtype, requires_grad=True)

    x, dt, A, B, C = normal(2, 5, 3), normal(2, 5, 3), normal(3, 4), normal(2, 5, 4), normal(2, 5, 4)
    q, k, v, beta = normal(2, 5, 2, 3), normal(2, 5, 2, 3), normal(2, 5, 2, 3), normal(2, 5, 2)
    with use_backend("numba"):
        y, last = selective_scan(x, dt.exp(), -A.exp(), B, C)
        o, state = delta_rule(q, k, v, beta, edit_state=lambda states: None, edit_write=lambda writes: None)
        sum(part.square().sum() for part in (y, last, o, state)).backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, dt, A, B, C, q, k, v, beta))


@torch.no_grad()
@pytest.mark.parametrize("preset", ["mamba", "mamba2", "gated_delta_net"])
def test_generation(preset, filled):
    model = HookedSSM(zoo.PRESETS[preset](d_model=16, n_layers=2, d_vocab=7, n_ctx=16, seed=0))
    for documents in (1, 5):
        _, state = model.step(torch.randint(7, (documents, 3)))
        logits, state = model.step(torch.randint(7, (documents, 1)), state)
        assert logits.isfinite().all()
        assert all(part.isfinite().all() for layer in state.layers for part in layer)


def test_products_into_memory_that_was_used_before(monkeypatch, filled):
    monkeypatch.setattr(memory, "LARGE", 1)
    monkeypatch.setattr(memory, "_free", {})
    a, b = torch.randn(20, 30), torch.randn(30, 40)
    memory.empty((20, 40), a).fill_(torch.nan)
    assert torch.equal(memory.matrix_product(a, b), a @ b)
    memory.empty((20, 30), a).fill_(torch.nan)
    assert torch.equal(memory.multiply(a, a), a * a)
