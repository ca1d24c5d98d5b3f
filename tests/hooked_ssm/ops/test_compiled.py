"""What is compiled against the reference, where it has borders of its own; and its arithmetic."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hooked_ssm.layers import Linear
from hooked_ssm.ops import compiled, linear_scan, memory, scan_with_edits, selective_scan, use_backend
from hooked_ssm.ops.compiled import addresses, arithmetic, selective_scan_kernels, threads
from hooked_ssm.ops.compiled.arithmetic import exp, kernel, silu, softplus
from hooked_ssm.ops.depthwise_conv import depthwise_conv
from hooked_ssm.ops.memory import LARGE, empty
from hooked_ssm.ops.rms_norm import rms_norm

CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


@kernel
def exps(x, out):
    for i in range(x.size):
        out[i] = exp(x[i])


@pytest.mark.parametrize(("dtype", "low", "high"), [("float32", -87.3, 88.3), ("float64", -708.3, 709.4)])
def test_exp_is_within_two_units_in_the_last_place(dtype, low, high):
    x = np.linspace(low, high, 100_001).astype(dtype)
    got = np.empty_like(x)
    exps(x, got)
    exact = np.exp(x.astype(np.longdouble))
    assert (np.abs(got - exact) <= 2 * np.spacing(exact.astype(dtype))).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exp_at_zero_far_out_and_of_what_is_no_number(dtype):
    x = np.array([0.0, -0.0, -1e4, -np.inf, 1e4, np.inf, np.nan], dtype)
    got = np.empty_like(x)
    exps(x, got)
    np.testing.assert_array_equal(got, np.array([1, 1, 0, 0, np.inf, np.inf, np.nan], dtype))


@kernel
def softpluses_and_silus(x, softpluses, silus):
    for i in range(x.size):
        softpluses[i], silus[i] = softplus(x[i]), silu(x[i])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softplus_and_silu_are_within_some_units_in_the_last_place(dtype):
    """Of numbers of 64 bits of mantissa; softplus is x itself above 20."""
    x = np.concatenate([np.linspace(-80, 20, 100_001), [0.0, -0.0, 21.0, 300.0, -300.0]]).astype(dtype)
    found = np.empty_like(x), np.empty_like(x)
    softpluses_and_silus(x, *found)
    wide = x.astype(np.longdouble)
    exact = np.where(x > 20, wide, np.log1p(np.exp(wide))), wide / (1 + np.exp(-wide))
    for got, want in zip(found, exact, strict=True):
        smallest = np.finfo(dtype).tiny * 4
        unit = np.maximum(np.spacing(np.abs(want).astype(dtype)), smallest)
        assert (np.abs(got - want) <= 4 * unit).all()
    special = np.array([-np.inf, np.inf, np.nan], dtype)
    softpluses_and_silus(special, *(pair := (np.empty_like(special), np.empty_like(special))))
    np.testing.assert_array_equal(pair[0], [0, np.inf, np.nan])


@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("graph", [True, False])
def test_a_short_convolution_is_pytorchs(graph, bias, taps):
    x, weight = normal(2, 9, 5), normal(5, 1, taps, seed=1)
    b = normal(5, seed=2) if bias else None
    want = torch.nn.functional.conv1d(x.mT, weight, b, groups=5).mT
    with use_backend("numba"), torch.set_grad_enabled(graph):
        got = depthwise_conv(x.mT.contiguous().mT, weight, b)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    if graph:
        wrt = [x, weight] + ([b] if bias else [])
        for one, two in zip(*(torch.autograd.grad(y.square().sum(), wrt) for y in (got, want)), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_norm_of_a_few_rows_is_pytorchs(dtype):
    x, weight = normal(1, 3, 50, dtype=dtype).detach(), normal(50, dtype=dtype, seed=1).detach()
    want = torch.nn.functional.rms_norm(x.double(), (50,), weight.double(), 1e-3).to(dtype)
    for name in ("numba", "torch"):
        with use_backend(name):
            torch.testing.assert_close(rms_norm(x, weight, 1e-3), want)
            assert rms_norm(x, weight.requires_grad_(), 1e-3).requires_grad
            weight.requires_grad_(False)


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_selective_scan_across_tiles_and_chunks_is_the_reference(per_channel):
    batch, pos, channels, states = (
        2,
        selective_scan_kernels.CHUNK + 5,
        selective_scan_kernels.FORWARD_TILE + 3,
        2,
    )
    own = (channels,) if per_channel else ()
    inputs = [
        normal(batch, pos, channels),
        torch.rand(batch, pos, channels, dtype=torch.float64).requires_grad_(),
        (-torch.rand(channels, states, dtype=torch.float64)).requires_grad_(),
        normal(batch, pos, *own, states, seed=1),
        normal(batch, pos, *own, states, seed=2),
        normal(batch, channels, states),
    ]
    results = []
    for name in ("numba", "torch"):
        with use_backend(name):
            y, last = selective_scan(*inputs)
        grads = torch.autograd.grad((y, last), inputs, (normal(*y.shape), normal(*last.shape)))
        results.append([y, last, *grads])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


def test_threads_change_no_bit(monkeypatch):
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    inputs = [
        normal(3, 40, 150, dtype=torch.float32),
        torch.rand(3, 40, 150).requires_grad_(),
        (-torch.rand(150, 4)).requires_grad_(),
        *(normal(3, 40, 4, dtype=torch.float32, seed=seed) for seed in (1, 2)),
    ]
    results = []
    before = torch.get_num_threads()
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        try:
            y, last = selective_scan(*inputs)
            results.append([y, last, *torch.autograd.grad(y.sum(), inputs)])
        finally:
            torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def set_some(states):
    states = states.clone()
    states[:, 2], states[0, 4, 1] = 1.5, 2 * states[0, 4, 1]
    return states


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("decay_shape", [(2, 7, 3, 5), (2, 7, 3, 1), (3, 1), (1,)], ids=str)
@pytest.mark.parametrize("permuted", [False, True])
def test_a_linear_scan_is_the_reference_however_its_arguments_lie_in_memory(dtype, decay_shape, permuted):
    write = normal(2, 7, 5, 3, dtype=dtype).mT if permuted else normal(2, 7, 3, 5, dtype=dtype)
    inputs = [normal(*decay_shape, dtype=dtype, seed=1), write.detach().requires_grad_()]
    inputs.append(normal(2, 3, 5, dtype=dtype))
    results = []
    for name in ("numba", "torch"):
        found = []
        with use_backend(name):
            for scan in (linear_scan, lambda decay, write, h: scan_with_edits(decay, write, set_some, h)):
                states = scan(inputs[0].expand(2, 7, 3, 5), *inputs[1:])
                grad = normal(*states.shape, dtype=dtype, seed=3)
                found += [states, *torch.autograd.grad(states, inputs, grad)]
        results.append(found)
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


def test_more_entries_than_go_through_together():
    decay, write = (normal(1, 4, 2500, seed=seed).detach() for seed in (0, 1))
    with use_backend("torch"):
        want = linear_scan(decay, write)
    with use_backend("numba"):
        torch.testing.assert_close(linear_scan(decay, write), want, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_linear_scan_in_half_precision_is_that_in_single_rounded(dtype):
    decay, write = (normal(2, 9, 3, dtype=torch.float32, seed=seed).detach().to(dtype) for seed in (0, 1))
    with use_backend("numba"):
        states = linear_scan(decay, write)
        assert torch.equal(states, linear_scan(decay.float(), write.float()).to(dtype))


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (2, 3, 0)], ids=str)
def test_a_linear_scan_of_nothing(shape):
    decay, write = normal(*shape), normal(*shape)
    with use_backend("numba"):
        states = linear_scan(decay, write)
    assert states.shape == shape
    assert torch.autograd.grad(states.sum(), write)[0].shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bfloat16], ids=str)
def test_large_tensors_are_no_views_and_lie_in_the_order_asked_for(dtype):
    like = torch.zeros(1, dtype=dtype)
    for rows in (2, LARGE // 8):
        made = empty((rows, 3, 2), like, (0, 2, 1))
        assert (made.dtype, made.shape, made.stride()) == (dtype, (rows, 3, 2), (6, 1, 3))
        assert not made._is_view()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("columns", [700, 701, 703])
def test_a_few_rows_times_a_matrix(columns, rows, transposed, dtype):
    a, b = normal(rows, 1, 130, dtype=dtype).detach(), normal(130, columns, dtype=dtype, seed=1).detach()
    b = b.t().contiguous().t() if transposed else b
    assert memory.few_rows(a, b)
    with use_backend("numba"):
        got = memory.matrix_product(a, b)
    assert got.shape == (rows, 1, columns)
    torch.testing.assert_close(got, (a.double() @ b.double()).to(dtype))


@pytest.mark.parametrize("width", [129, 131, 65, 260])
def test_rows_that_do_not_fit_are_refused(width):
    """Before a kernel, which checks nothing, reads beyond their end."""
    a, b, w = (normal(*shape).detach() for shape in ((2, width), (130, 700), (130,)))
    with pytest.raises(ValueError, match=rf"rows as long as the matrix, got \[2, {width}\] and \[130, 700"):
        memory.matrix_product(a, b)
    with pytest.raises(RuntimeError, match="normalized_shape"):
        inspect.unwrap(rms_norm)(a, w, 1e-3)
    for x in (normal(1, 4, width), normal(1, 3, 130)):
        with pytest.raises(ValueError, match=r"130 channels and 4 taps needs .* got \[1, "):
            inspect.unwrap(depthwise_conv)(x, normal(130, 1, 4), w)


def test_a_graph_many_rows_or_a_small_matrix_take_torchs_product():
    a, b = normal(1, 130), normal(130, 700)
    assert not memory.few_rows(a, b) and memory.matrix_product(a, b).requires_grad
    a, b = a.detach(), b.detach()
    assert not memory.few_rows(a.expand(9, -1), b) and not memory.few_rows(a, b[:, :3])
    assert torch.equal(memory.matrix_product(a.repeat(9, 1), b), a.repeat(9, 1) @ b)


def test_a_linear_map_of_one_token_is_that_of_many():
    layer = Linear(130, 700, bias=True, std=None).double()
    layer.bias.data.fill_(0.5)
    x = normal(1, 9, 130)
    with torch.no_grad():
        torch.testing.assert_close(layer(x[:, :1]), layer(x)[:, :1], **CLOSE)


def test_memory_of_freed_tensors_is_used_again_up_to_a_limit(monkeypatch):
    memory.give_back()
    like = torch.zeros(1)
    shape = (LARGE // 4, 1)
    first, second = empty(shape, like), empty(shape, like)
    assert first.data_ptr() != second.data_ptr()
    view, place = first[5:], first.data_ptr()
    del first
    assert empty(shape, like).data_ptr() != place  # the view still lives
    del view
    third = empty(shape, like)
    assert third.data_ptr() == place
    monkeypatch.setattr(memory, "KEPT", LARGE)
    memory.give_back()
    del second, third
    assert sum(map(len, memory._free.values())) == 1
    memory.give_back()


SCAN = """
import torch
from hooked_ssm.ops import linear_scan, use_backend
with use_backend("numba"):
    print(linear_scan(torch.ones(1, 3, 2), torch.ones(1, 3, 2)).sum().item())
"""


def test_where_no_folder_can_be_written_kernels_are_compiled_for_the_process(tmp_path):
    """Neither the one beside the source nor the user's cache (a file stands in their places)."""
    package = Path(compiled.__file__).parents[2]
    shutil.copytree(package, tmp_path / "hooked_ssm", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "hooked_ssm" / "ops" / "compiled" / "__pycache__").write_text("")
    (tmp_path / "cache").write_text("")
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path / "cache"),
        "IPYTHONDIR": str(tmp_path / "cache"),
    }
    environment.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, "-c", SCAN]
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "12.0"


def test_what_is_for_compiled_code_says_so():
    for function, arguments in (
        *((function, (1.0,)) for function in (arithmetic.exp, softplus, silu)),
        *((arithmetic.fma, (1.0, 1.0, 1.0)), (addresses.array, (1, (1,), 1.0))),
    ):
        with pytest.raises(NotImplementedError, match="compiled code"):
            function(*arguments)
