"""Times on a GPU: medians over replays of a CUDA graph, or of plain calls where a call cannot be captured.

Without a GPU every call is made once, and its time is nan: so that all of the script can be tried anywhere.
"""

import math
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 5  # in which Triton compiles and tunes, and libraries set themselves up
MIB = 2**20


def device_ms(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int = 30, ms_a_turn: float = 5.0
) -> dict[str, float]:
    """Median milliseconds of each call. The calls take turns; short ones are repeated in theirs."""
    if not torch.cuda.is_available():
        return {name: elapsed(call, 1) for name, call in calls.items()}
    replays = {name: captured(call) for name, call in calls.items()}
    repeats = {
        name: max(1, round(ms_a_turn / max(elapsed(replay, 3), 1e-4))) for name, replay in replays.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, replay in replays.items():
            times[name].append(elapsed(replay, repeats[name]))
    return {name: median(taken) for name, taken in times.items()}


def elapsed(call: Callable[[], Any], repeats: int) -> float:
    """Milliseconds a call, by events around so many."""
    if not torch.cuda.is_available():
        call()
        return math.nan
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """Replays of the call, so that launching does not count; the call itself if it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call
    return graph.replay


def copy_bandwidth() -> float:
    """Bytes a millisecond of a large copy, those read and those written."""
    source = torch.randint(0, 127, (1024 * MIB,), dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    taken = device_ms({"copy": lambda: target.copy_(source)}, rounds=15)["copy"]
    return 2 * source.numel() / taken


def n_bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def relative_error(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want|; infinite if anything is not a number."""
    got, want = got.detach().double(), want.detach().double()
    error = float((got - want).norm() / want.norm().clamp_min(1e-30))
    return error if error == error else float("inf")
