"""What the kernels share, and that they run at all: compiled where there is a GPU, else interpreted."""

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from hooked_ssm.ops.triton.common import TL_DTYPES, accumulator, check_runnable, slots, then

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@triton.jit
def _scan(decay, write, states, T: tl.constexpr, ACC: tl.constexpr, REVERSE: tl.constexpr):
    t = tl.arange(0, T)
    a, w = tl.load(decay + t).to(ACC), tl.load(write + t).to(ACC)
    _, h = tl.associative_scan((a, w), 0, then, reverse=REVERSE)
    tl.store(states + t, h)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_then_scans_the_recurrence(dtype, reverse):
    decay, write = torch.rand(2, 8, dtype=dtype).to(DEVICE)
    states = torch.full_like(write, torch.nan)
    _scan[(1,)](decay, write, states, 8, TL_DTYPES[dtype], reverse)  # pyright: ignore
    h = torch.zeros((), dtype=dtype, device=DEVICE)
    for t in reversed(range(8)) if reverse else range(8):
        h = decay[t] * h + write[t]
        torch.testing.assert_close(states[t], h)


def test_half_precision_accumulates_in_single():
    half, single, double = (torch.zeros(1, dtype=d) for d in (torch.bfloat16, torch.float32, torch.float64))
    assert accumulator(half, None) == torch.float32
    assert accumulator(half, single, double) == torch.float64


def test_slots_index_the_positions_asked_for():
    assert slots([4, 1], 6, DEVICE).tolist() == [-1, 1, -1, -1, 0, -1]
    for wrong in ([6], [-1], [1, 1]):
        with pytest.raises(ValueError, match=r"distinct and lie in 0..5, got"):
            slots(wrong, 6, DEVICE)


def test_tensors_where_no_kernel_can_run_raise():
    check_runnable(torch.zeros(1, device=DEVICE), None)
    with pytest.raises(ValueError, match="on a GPU, got meta"):
        check_runnable(torch.zeros(1, device="meta"))
