"""The adapter to mamba-ssm's selective scan: when it is taken, and what it hands on.

The package needs a GPU, so a stand-in with the documented signature takes its place: u, delta [B, D, L], A
[D, N], B and C [B, N, L] or [B, groups, N, L], returning out [B, D, L] and the last state [B, D, N].
"""

import sys
from types import ModuleType

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hooked_ssm.ops import backends, use_backend
from hooked_ssm.ops.backends import BackendError, call_of, implementation, load
from hooked_ssm.ops.mamba_ssm_scan import mamba_ssm_selective_scan
from hooked_ssm.ops.selective_scan import torch_selective_scan

NO_EDITS = {"edit_decay": None, "edit_write": None, "edit_state": None}


def sample(*, per_channel=False, dtype=torch.float32):
    x, dt = torch.randn(2, 5, 3), torch.rand(2, 5, 3)
    B, C = (torch.randn(2, 5, *([3] if per_channel else []), 4) for _ in range(2))
    inputs = {"x": x, "dt": dt, "A": -torch.rand(3, 4), "B": B, "C": C}
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in inputs.items()}


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    assert u.shape == delta.shape == (2, 3, 5) and A.shape == (3, 4) and A.dtype == torch.float32
    assert B.shape in ((2, 4, 5), (2, 3, 4, 5)) and C.shape == B.shape
    assert {u.dtype, delta.dtype, B.dtype, C.dtype} == {u.dtype} and u.stride(-1) == 1
    assert D is None and z is None and delta_bias is None and not delta_softplus and return_last_state
    h, out = torch.zeros(2, 3, 4), []
    B, C = (t if t.ndim == 4 else t.unsqueeze(1) for t in (B.float(), C.float()))
    for t in range(5):
        dt = delta[:, :, t].float().unsqueeze(2)
        h = torch.exp(dt * A) * h + dt * u[:, :, t].float().unsqueeze(2) * B[..., t]
        out.append((h * C[..., t]).sum(2))
    return torch.stack(out, 2).to(u.dtype), h


@pytest.fixture
def installed(monkeypatch):
    """mamba-ssm is installed, and a CPU will do for it."""
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    monkeypatch.setitem(backends.BACKENDS, "mamba_ssm", lambda call: None)


@pytest.mark.parametrize("per_channel", [False, True], ids=["shared", "per channel"])
def test_outputs_and_gradients_are_the_references(installed, per_channel):
    inputs = sample(per_channel=per_channel)
    y, last = mamba_ssm_selective_scan(**inputs)
    want_y, want_last = torch_selective_scan(**inputs, initial=None, **NO_EDITS)
    torch.testing.assert_close((y, last), (want_y, want_last))
    grad = torch.randn(y.shape)
    got = torch.autograd.grad(y, inputs.values(), grad)
    torch.testing.assert_close(got, torch.autograd.grad(want_y, inputs.values(), grad))


def test_half_precision_goes_in_as_it_is_if_all_of_it_is(installed):
    inputs = sample(dtype=torch.bfloat16)
    y, last = mamba_ssm_selective_scan(**inputs)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    mixed = inputs | {"dt": inputs["dt"].float()}
    y, last = mamba_ssm_selective_scan(**mixed)
    want, _ = torch_selective_scan(**mixed, initial=None, **NO_EDITS)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, want)


def test_a_loss_on_the_last_state_raises(installed):
    _, last = mamba_ssm_selective_scan(**sample())
    with pytest.raises(RuntimeError, match="no gradient of the last state.*triton"):
        last.sum().backward()


def chosen(inputs, **edits):
    return implementation(call_of("selective_scan", inputs, **edits))


def test_it_is_taken_while_nothing_is_hooked(installed):
    assert chosen(sample()) is mamba_ssm_selective_scan
    for name in ("decay", "write", "state"):
        assert chosen(sample(), **{name: lambda tensor: None}) is not mamba_ssm_selective_scan
    assert chosen(sample() | {"initial": torch.zeros(2, 3, 4)}) is not mamba_ssm_selective_scan
    assert chosen(sample(dtype=torch.float64)) is not mamba_ssm_selective_scan
    assert chosen(sample() | {"A": -torch.rand(3, 300)}) is not mamba_ssm_selective_scan


@pytest.mark.parametrize(
    ("more", "edits", "reason"),
    [
        ({}, {"state": lambda tensor: None}, "no form with hooks on state"),
        ({"initial": torch.zeros(2, 3, 4)}, {}, "no initial state"),
        ({"x": torch.zeros(2, 5, 3, dtype=torch.float64)}, {}, "not in torch.float64"),
        ({"A": torch.zeros(3, 300)}, {}, "at most 256 dimensions a channel, not 300"),
    ],
)
def test_named_for_what_it_cannot_do_it_raises(installed, more, edits, reason):
    with use_backend("mamba_ssm"), pytest.raises(BackendError, match=f"{reason}.*'torch'"):
        chosen(sample() | more, **edits)


def test_on_a_gpu_triton_takes_what_it_cannot(monkeypatch):
    monkeypatch.setattr(backends, "_installed", lambda module: True)
    shapes = {name: tensor.shape for name, tensor in sample().items()}
    with FakeTensorMode():  # tensors without memory, on whatever device they say
        inputs = {name: torch.empty(shape, device="cuda") for name, shape in shapes.items()}
        assert chosen(inputs) is mamba_ssm_selective_scan
        triton_form = load("hooked_ssm.ops.triton.selective_scan:triton_selective_scan")
        assert chosen(inputs, state=lambda tensor: None) is triton_form
        assert chosen(inputs | {"initial": torch.zeros(2, 3, 4, device="cuda")}) is triton_form
        conv = call_of("depthwise_conv", {"x": inputs["x"]})
        assert implementation(conv) is load("hooked_ssm.ops.triton.depthwise_conv:triton_depthwise_conv")


def test_without_a_gpu_it_is_not_taken():
    call = call_of("selective_scan", sample())
    assert backends.BACKENDS["mamba_ssm"](call) is not None
    assert implementation(call) is not mamba_ssm_selective_scan
