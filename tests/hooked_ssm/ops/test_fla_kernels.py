"""The adapters to flash-linear-attention: when they are taken, what they hand on, and what comes back.

The package may not be installed, so stand-ins with the documented signatures take its place: q, k [B, T, H,
K], v [B, T, H, V], beta [B, T, H], g, in logarithms, [B, T, H] or [B, T, H, K], states [B, H, K, V]. Where it
is, its own kernels are run too; without a GPU, interpreted.
"""

import builtins
import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from hooked_ssm.ops import BackendError, backends, use_backend
from hooked_ssm.ops.backends import call_of, implementation
from hooked_ssm.ops.delta_rule import torch_delta_rule
from hooked_ssm.ops.fla_kernels import fla_delta_rule, fla_linear_attention
from hooked_ssm.ops.linear_attention import torch_linear_attention

NO_EDITS = {"edit_decay": None, "edit_write": None, "edit_state": None, "chunk": None}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sample(operator, decay="head", groups=2, pos=5, dtype=torch.float32, d_key=3):
    q, k = torch.randn(2, 2, pos, groups, d_key)
    v = torch.randn(2, pos, 2, 4)
    inputs = {"q": q / 2, "k": k / k.norm(dim=-1, keepdim=True), "v": v}
    if operator is fla_delta_rule:
        inputs["beta"] = torch.rand(2, pos, 2)
    inputs = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    if decay is not None:
        inputs["log_decay"] = -torch.rand(2, pos, 2, *([d_key] if decay == "channel" else []))
    inputs["initial"] = torch.randn(2, 2, d_key, 4)
    return {name: tensor.to(DEVICE).requires_grad_() for name, tensor in inputs.items()}


def results(operator, inputs):
    outs = operator(**{"log_decay": None, **inputs}, **NO_EDITS)
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=g).to(out) for out in outs]
    return [*outs, *torch.autograd.grad(outs, list(inputs.values()), weights)]


def loop(q, k, v, beta, g, scale, initial_state, output_final_state):
    assert scale == 1.0 and output_final_state and initial_state.dtype == torch.float32
    assert q.shape == k.shape and q.dtype == k.dtype == v.dtype and q.shape[2] == v.shape[2]
    S, reads, dtype = initial_state, [], v.dtype
    q, k, v = q.float(), k.float(), v.float()
    for t in range(q.shape[1]):
        if g is not None:
            assert g.dtype == torch.float32
            S = S * g[:, t].exp().reshape(*g[:, t].shape, *[1] * (5 - g.ndim))
        write = v[:, t]
        if beta is not None:
            write = beta[:, t].float().unsqueeze(-1) * (write - (S * k[:, t].unsqueeze(-1)).sum(2))
        S = S + k[:, t].unsqueeze(-1) * write.unsqueeze(2)
        reads.append((S * q[:, t].unsqueeze(-1)).sum(2))
    return torch.stack(reads, 1).to(dtype), S


def chunk_delta_rule(q, k, v, beta, scale=None, initial_state=None, output_final_state=False):
    assert q.dtype != torch.float32 and beta.dtype == q.dtype
    return loop(q, k, v, beta, None, scale, initial_state, output_final_state)


def chunk_gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
    assert g.shape == beta.shape
    return loop(q, k, v, beta, g, scale, initial_state, output_final_state)


def chunk_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    assert g.shape == q.shape
    return loop(q, k, v, None, g, scale, initial_state, output_final_state)


def chunk_simple_gla(q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False):
    assert g_gamma is None and (g is None or g.shape == v.shape[:3])
    return loop(q, k, v, None, g, scale, initial_state, output_final_state)


@pytest.fixture
def installed(monkeypatch):
    """The package is installed, and a CPU will do for it."""
    for function in (chunk_delta_rule, chunk_gated_delta_rule, chunk_gla, chunk_simple_gla):
        module = ModuleType("fla.ops." + function.__name__.removeprefix("chunk_"))
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(backends.BACKENDS, "fla", lambda call: None)


CASES = [
    (fla_delta_rule, torch_delta_rule, None, 2),
    (fla_delta_rule, torch_delta_rule, "head", 2),
    (fla_linear_attention, torch_linear_attention, None, 2),
    (fla_linear_attention, torch_linear_attention, "head", 1),
    (fla_linear_attention, torch_linear_attention, "channel", 1),
]
IDS = ["delta rule", "gated delta rule", "linear attention", "decays by head", "decays by channel"]


@pytest.mark.parametrize(("ours", "reference", "decay", "groups"), CASES, ids=IDS)
def test_outputs_and_gradients_are_the_references(installed, ours, reference, decay, groups):
    inputs = sample(ours, decay, groups)
    torch.testing.assert_close(results(ours, inputs), results(reference, inputs))


@pytest.mark.parametrize(("ours", "reference", "decay", "groups"), CASES, ids=IDS)
def test_half_precision_goes_in_as_it_is(installed, ours, reference, decay, groups):
    inputs = sample(ours, decay, groups, dtype=torch.bfloat16)
    (o, last, *_), wanted = results(ours, inputs), results(reference, inputs)
    assert (o.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close((o, last), tuple(wanted[:2]))


# The interpreter's own limits: it times nothing, and the counters of its loops are Python's numbers.


class Counter(int):
    def to(self, dtype):
        import triton.language as tl

        return tl.full((), int(self), dtype)


def counters(*ends):
    return map(Counter, builtins.range(*(int(end) for end in ends)))


@pytest.fixture
def interpretable(monkeypatch):
    if DEVICE.type == "cuda":
        return
    import fla.ops.delta_rule
    import fla.ops.gated_delta_rule
    import fla.ops.gla
    import fla.ops.simple_gla  # noqa: F401
    from triton.runtime.autotuner import Autotuner

    monkeypatch.setattr(Autotuner, "_bench", lambda self, *args, **kwargs: 1.0)
    for name, module in list(sys.modules.items()):
        if name.startswith("fla.ops"):
            monkeypatch.setattr(module, "range", counters, raising=False)


@pytest.mark.skipif(importlib.util.find_spec("fla") is None, reason="flash-linear-attention is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("ours", "reference", "decay", "groups"), CASES, ids=IDS)
def test_the_kernels_themselves_compute_what_the_reference_does(
    interpretable, ours, reference, decay, groups
):
    inputs = sample(ours, decay, groups, pos=19, d_key=16)
    tolerance = 3e-3 if DEVICE.type == "cuda" else 1e-5  # tf32, which the interpreter does not imitate
    for got, wanted in zip(results(ours, inputs), results(reference, inputs), strict=True):
        assert (got - wanted).norm() <= tolerance * wanted.norm()


def chosen(operator, inputs, **edits):
    name = "delta_rule" if operator is fla_delta_rule else "linear_attention"
    return implementation(call_of(name, inputs, **edits))


@pytest.mark.parametrize("operator", [fla_delta_rule, fla_linear_attention])
def test_it_is_taken_on_a_gpu_while_nothing_is_hooked_and_tf32_will_do(installed, monkeypatch, operator):
    half, single = sample(operator, dtype=torch.bfloat16), sample(operator)
    monkeypatch.setattr(backends, "_on_cuda", lambda call: True)
    assert chosen(operator, half) is operator
    for name in ("decay", "write", "state"):
        assert chosen(operator, half, **{name: lambda tensor: None}) is not operator
    assert chosen(operator, single) is not operator
    torch.set_float32_matmul_precision("high")
    try:
        assert chosen(operator, single) is operator
    finally:
        torch.set_float32_matmul_precision("highest")
    assert chosen(operator, {name: tensor.double() for name, tensor in single.items()}) is not operator


@pytest.mark.parametrize("operator", [fla_delta_rule, fla_linear_attention])
def test_named_for_what_it_cannot_do_it_raises(installed, operator):
    inputs = sample(operator)
    double = {name: tensor.double() for name, tensor in inputs.items()}
    wide = {name: tensor.new_zeros(1, 2, 2, 300) for name, tensor in inputs.items()}
    with use_backend("fla"):
        assert chosen(operator, inputs) is operator
        with pytest.raises(BackendError, match="no form with hooks on state.*'torch'"):
            chosen(operator, inputs, state=lambda tensor: None)
        with pytest.raises(BackendError, match="not in torch.float64"):
            chosen(operator, double)
        with pytest.raises(BackendError, match="d_key up to 256, got 300"):
            chosen(operator, wide)


def test_without_a_gpu_it_is_not_taken():
    call = call_of("delta_rule", {name: tensor.cpu() for name, tensor in sample(fla_delta_rule).items()})
    assert backends.BACKENDS["fla"](call) is not None
    assert implementation(call) is not fla_delta_rule
