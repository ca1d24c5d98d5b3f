"""Which back end computes what, and what is said when the one that was named cannot."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from hooked_ssm import HookedSSM, HookedSSMConfig, ops, zoo
from hooked_ssm.mixers import MambaConfig
from hooked_ssm.ops import At, BackendError, StateEdit, backends, linear_scan, scan_with_edits, selective_scan
from hooked_ssm.ops.backends import IMPLEMENTATIONS, Row, no_edits
from hooked_ssm.ops.linear_scan import TORCH

LIGHT = """
import sys, transformer_lens, torch._dynamo  # which imports triton
before = set(sys.modules)
import hooked_ssm
print({"numba", "triton", "fla", "mamba_ssm"} & set(sys.modules) - before)
"""


def sample():
    x, dt, B, C = (torch.rand(2, 5, n) for n in (3, 3, 4, 4))
    return x, dt, -torch.rand(3, 4), B, C


ran: list[str] = []


def spying(*inputs, **edits):
    ran.append("spy")
    return backends.load("hooked_ssm.ops.selective_scan:torch_selective_scan")(*inputs, **edits)


@pytest.fixture
def spy(monkeypatch):
    """A back end of ours that has a selective scan, which honours no edit and is never `auto`'s."""
    ran.clear()
    row = Row("spy", "spy:spying", no_edits, lambda call: False)
    missing = Row("absent", "absent:absent")
    monkeypatch.setitem(IMPLEMENTATIONS, "selective_scan", [row, missing, *IMPLEMENTATIONS["selective_scan"]])
    monkeypatch.setitem(backends.BACKENDS, "spy", lambda call: None)
    monkeypatch.setitem(backends.BACKENDS, "absent", lambda call: "it is not installed")
    real = backends.load
    monkeypatch.setattr(backends, "load", lambda where: spying if where == "spy:spying" else real(where))
    return ran


def test_importing_the_library_imports_no_back_end():
    command = [sys.executable, "-c", LIGHT]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "set()"


def test_every_row_names_a_back_end_and_something_that_is_there():
    for rows in IMPLEMENTATIONS.values():
        for row in rows:
            assert row.backend in backends.BACKENDS
            assert importlib.util.find_spec(row.where.split(":")[0])
        assert rows[-1].backend == "torch"


def test_a_named_back_end_runs_inside_its_block_alone(spy):
    selective_scan(*sample())
    assert spy == []
    with ops.use_backend("spy"):
        selective_scan(*sample())
        with ops.use_backend("torch"):
            selective_scan(*sample())
        with ops.use_backend("auto"):
            selective_scan(*sample())
        assert spy == ["spy"]
        selective_scan(*sample())
    selective_scan(*sample())
    assert spy == ["spy", "spy"]


def test_a_block_that_fails_leaves_nothing_behind(spy):
    with pytest.raises(KeyError), ops.use_backend("spy"):
        raise KeyError
    selective_scan(*sample())
    assert spy == []


def test_a_named_back_end_that_cannot_honour_a_hook_names_those_that_can(spy):
    with ops.use_backend("spy"), pytest.raises(BackendError) as error:
        selective_scan(*sample(), edit_state=lambda states: None)
    assert "'spy' cannot run selective_scan here: it has no form with hooks on state." in str(error.value)
    assert "'torch'" in str(error.value) and "'spy'" not in str(error.value).split("Those that can")[1]
    assert spy == []


def test_a_named_back_end_that_is_not_installed_says_so(spy):
    with ops.use_backend("absent"), pytest.raises(BackendError, match="'absent'.*it is not installed"):
        selective_scan(*sample())


@pytest.mark.parametrize("name", ["mamba_ssm", "fla"])
def test_kernels_for_cuda_refuse_a_cpu(name, monkeypatch):
    monkeypatch.setattr(backends, "_installed", lambda module: True)
    call = backends.call_of("selective_scan", {"x": torch.zeros(1)})
    assert "needs CUDA, the tensors are on cpu" in str(backends.BACKENDS[name](call))


def test_triton_is_for_cuda_or_for_its_interpreter(monkeypatch):
    monkeypatch.setattr(backends, "_installed", lambda module: True)
    call = backends.call_of("selective_scan", {"x": torch.zeros(1)})
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET=1" in str(backends.BACKENDS["triton"](call))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.BACKENDS["triton"](call) is None


def test_an_operator_that_has_nothing_of_the_name_is_left_to_auto(spy):
    decay, write = torch.rand(2, 1, 4, 3)
    with ops.use_backend("spy"):
        linear_scan(decay, write)


def test_an_unknown_name_raises_with_the_known_ones():
    with pytest.raises(ValueError, match="'torch'.*got 'cuda'"), ops.use_backend("cuda"):
        pass
    with pytest.raises(ValueError, match="'torch'.*got 'cuda'"):
        HookedSSMConfig(d_model=4, n_layers=1, d_vocab=3, mixers=MambaConfig(), backend="cuda")


def test_a_model_runs_on_its_back_end_unless_a_block_names_another(spy):
    model = HookedSSM(zoo.mamba(d_model=4, n_layers=1, d_vocab=3, backend="spy"))
    tokens = torch.zeros(1, 4, dtype=torch.long)
    model(tokens)
    assert spy == ["spy"]
    with ops.use_backend("torch"):
        model(tokens)
    model.cfg.backend = "auto"
    model(tokens)
    assert spy == ["spy"]


def test_a_saved_model_is_not_bound_to_its_back_end(tmp_path):
    HookedSSM(zoo.mamba(d_model=4, n_layers=1, d_vocab=3, backend="triton")).save(tmp_path)
    assert HookedSSM.load(tmp_path).cfg.backend == "auto"


def test_gradients_run_on_the_back_end_of_the_forward_pass(monkeypatch):
    used = []
    recording = TORCH._replace(reverse=lambda *given: used.append("reverse") or TORCH.reverse(*given))
    monkeypatch.setattr(backends, "load", lambda where: recording)
    decay, write = (part.requires_grad_() for part in torch.rand(2, 1, 4, 3).unbind(0))
    states = linear_scan(decay, write)
    monkeypatch.undo()
    states.sum().backward()
    assert used == ["reverse"]


def test_an_edit_of_some_positions_is_handed_those_and_sets_them():
    decay, write = torch.rand(2, 2, 6, 3, dtype=torch.float64)
    seen = []

    def edit(states):
        seen.append(states.clone())
        return states * 2

    got = scan_with_edits(decay, write, At([1, 4], edit))
    whole = linear_scan(decay, write)
    assert torch.equal(seen[0], whole[:, [1, 4]])

    def same(states):
        new = states.clone()
        new[:, [1, 4]] *= 2
        return new

    assert torch.equal(got, scan_with_edits(decay, write, same))


def test_looking_at_some_positions_changes_nothing_and_they_may_be_frozen():
    decay, write = torch.rand(2, 2, 6, 3, dtype=torch.float64)
    whole = linear_scan(decay, write)
    assert torch.equal(scan_with_edits(decay, write, At([2], lambda states: None)), whole)

    def set_one_hold_one(states):
        new = states.clone()
        new[:, 0] = 0
        return StateEdit(new, torch.ones(1, 2, 1, dtype=torch.bool))

    got = scan_with_edits(decay, write, At([1, 4], set_one_hold_one))
    assert torch.equal(got[:, 4], whole[:, 4]) and not got[:, 1].any()
    assert (got[:, 3] != whole[:, 3]).all()


@pytest.mark.parametrize("positions", [[], [2, 1], [1, 1], [-1]])
def test_positions_that_do_not_increase_raise(positions):
    with pytest.raises(ValueError, match="must increase"):
        At(positions, lambda states: None)


def test_positions_beyond_the_document_raise():
    decay, write = torch.rand(2, 2, 6, 3)
    with pytest.raises(ValueError, match="less than 6"):
        scan_with_edits(decay, write, At([6], lambda states: None))
