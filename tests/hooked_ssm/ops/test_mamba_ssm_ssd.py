"""The adapter to mamba-ssm's SSD: when it is taken, and what it hands on.

The package needs a GPU, so a stand-in with the documented signature takes its place: x [B, L, H, P], dt [B,
L, H], A [H], B and C [B, L, G, N], initial states [B, H, P, N], returning out [B, L, H, P] and the last
states.
"""

import sys
from types import ModuleType

import pytest
import torch

from hooked_ssm.ops import BackendError, backends, use_backend
from hooked_ssm.ops.backends import call_of, implementation
from hooked_ssm.ops.linear_attention import torch_linear_attention
from hooked_ssm.ops.mamba_ssm_ssd import mamba_ssm_linear_attention

NO_EDITS = {"edit_decay": None, "edit_write": None, "edit_state": None, "chunk": None}


def sample(dtype=torch.float32, initial=True):
    q, k = torch.randn(2, 2, 5, 2, 3)
    inputs = {"q": q, "k": k, "v": torch.randn(2, 5, 4, 6)}
    inputs = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    inputs["log_decay"] = -0.01 - torch.rand(2, 5, 4)
    if initial:
        inputs["initial"] = torch.randn(2, 4, 3, 6)
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, z=None, initial_states=None, return_final_states=False
):
    assert x.shape == (2, 5, 4, 6) and dt.shape == (2, 5, 4) and A.shape == (4,) and A.dtype == torch.float32
    assert B.shape == C.shape == (2, 5, 2, 3) and x.dtype == B.dtype == C.dtype
    assert all(tensor.is_contiguous() for tensor in (x, B, C)) and chunk_size == 256
    assert D is None and z is None and return_final_states and (dt > 0).all()
    S = torch.zeros(2, 4, 6, 3) if initial_states is None else initial_states
    B, C = (M.float().repeat_interleave(2, dim=2).unsqueeze(3) for M in (B, C))
    reads = []
    for t in range(5):
        step = dt[:, t, :, None, None]
        S = (step * A[:, None, None]).exp() * S + step * x[:, t].float().unsqueeze(-1) * B[:, t]
        reads.append((S * C[:, t]).sum(-1))
    return torch.stack(reads, 1).to(x.dtype), S


@pytest.fixture
def installed(monkeypatch):
    """mamba-ssm is installed, and a CPU will do for it."""
    combined = ModuleType("mamba_ssm.ops.triton.ssd_combined")
    combined.mamba_chunk_scan_combined = mamba_chunk_scan_combined
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, combined.__name__, combined)
    monkeypatch.setitem(backends.BACKENDS, "mamba_ssm", lambda call: None)


def results(operator, inputs):
    outs = operator(**{"initial": None, **inputs}, **NO_EDITS)
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=g).to(out) for out in outs]
    return [*outs, *torch.autograd.grad(outs, list(inputs.values()), weights)]


@pytest.mark.parametrize("initial", [False, True])
def test_outputs_and_gradients_are_the_references(installed, initial):
    inputs = sample(initial=initial)
    torch.testing.assert_close(
        results(mamba_ssm_linear_attention, inputs),
        results(torch_linear_attention, inputs),
        rtol=1e-5,
        atol=1e-4,  # gradients of decays are differences of large numbers where decays are weak
    )


def test_a_decay_of_one_keeps_everything(installed):
    inputs = sample()
    with torch.no_grad():
        inputs["log_decay"][:, 2] = 0.0
    got, wanted = (
        operator(**inputs, **NO_EDITS) for operator in (mamba_ssm_linear_attention, torch_linear_attention)
    )
    torch.testing.assert_close(got, wanted)


def test_half_precision_goes_in_as_it_is_if_all_of_it_is(installed):
    inputs = sample(torch.bfloat16)
    o, last = mamba_ssm_linear_attention(**inputs, **NO_EDITS)
    wanted, _ = torch_linear_attention(**inputs, **NO_EDITS)
    assert (o.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(o, wanted, rtol=2e-2, atol=4e-2)  # v / dt is rounded too
    mixed = inputs | {"v": inputs["v"].float()}
    torch.testing.assert_close(
        mamba_ssm_linear_attention(**mixed, **NO_EDITS), torch_linear_attention(**mixed, **NO_EDITS)
    )


def chosen(inputs, **edits):
    return implementation(call_of("linear_attention", inputs, **edits))


def test_it_is_taken_on_a_gpu_while_nothing_is_hooked_and_tf32_will_do(installed, monkeypatch):
    monkeypatch.setattr(backends, "_on_cuda", lambda call: True)
    half = sample(torch.bfloat16)
    assert chosen(half) is mamba_ssm_linear_attention
    assert chosen(sample()) is not mamba_ssm_linear_attention
    for name in ("decay", "write", "state"):
        assert chosen(half, **{name: lambda tensor: None}) is not mamba_ssm_linear_attention


@pytest.mark.parametrize(
    ("change", "edits", "reason"),
    [
        ({}, {"write": lambda tensor: None}, "no form with hooks on write"),
        ({"v": torch.zeros(2, 5, 4, 6, dtype=torch.float64)}, {}, "not in torch.float64"),
        ({"log_decay": torch.zeros(2, 5, 4, 3)}, {}, "decays by head, not by channel"),
        ({"log_decay": None}, {}, "no form without decays"),
    ],
)
def test_named_for_what_it_cannot_do_it_raises(installed, change, edits, reason):
    with use_backend("mamba_ssm"), pytest.raises(BackendError, match=f"{reason}.*'torch'"):
        chosen(sample() | change, **edits)
