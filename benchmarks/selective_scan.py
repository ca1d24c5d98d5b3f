"""The selective scan against its peers: python -m benchmarks.selective_scan

Per shape (batch x positions x channels, d_state 16, float32, one thread):

- forward, against the loop of transformers' MambaMixer without kernels (`mamba_selective_scan`);
- forward and backward, and its peak memory, against mambapy's parallel scan, the fastest of the peers'
  training paths (the backward of transformers' loop takes time quadratic in the length: no ratio to it is
  given);
- in a second table, the back end `torch` against `numba`, which a CPU takes.

Times are process CPU times, medians over rounds in which the implementations take turns, so that another job
on the machine disturbs all alike. Memory is the allocator's peak above what was held on entry.
"""

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import cpu_ms
from hooked_ssm.ops import selective_scan, use_backend

SHAPES = [(32, 36, 128), (4, 256, 512), (1, 1024, 1536)]
D_STATE = 16

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def ours(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return selective_scan(x, dt, A, B, C)[0]


def transformers_loop() -> Scan | None:
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    loop = inspect.unwrap(mamba_selective_scan)  # the torch code, whatever kernels are installed

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return loop(
            *(tensor.transpose(1, 2) for tensor in (x, dt)), A, B.transpose(1, 2), C.transpose(1, 2)
        ).mT

    return scan


def mambapy_pscan() -> Scan | None:
    if importlib.util.find_spec("mambapy") is None:
        return None
    from mambapy.pscan import pscan

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        decay = torch.exp(dt.unsqueeze(-1) * A)
        write = dt.unsqueeze(-1) * B.unsqueeze(2) * x.unsqueeze(-1)
        return (pscan(decay, write) @ C.unsqueeze(-1)).squeeze(3)

    return scan


@dataclass
class Problem:
    inputs: list[Tensor]  # x, dt, A, B, C
    grad: Tensor

    @classmethod
    def sample(cls, batch: int, pos: int, d_inner: int) -> "Problem":
        """Inputs as a Mamba layer has them: dt between 0.001 and 0.1, A = -1 ... -d_state."""
        g = torch.Generator().manual_seed(0)
        x, grad = (torch.randn(batch, pos, d_inner, generator=g) for _ in range(2))
        dt = torch.empty(batch, pos, d_inner).uniform_(0.001, 0.1, generator=g)
        A = -torch.arange(1.0, D_STATE + 1).expand(d_inner, D_STATE).contiguous()
        B, C = (torch.randn(batch, pos, D_STATE, generator=g) for _ in range(2))
        return cls([tensor.requires_grad_() for tensor in (x, dt, A, B, C)], grad)

    def forward(self, scan: Scan) -> Tensor:
        with torch.no_grad():
            return scan(*self.inputs)

    def train(self, scan: Scan) -> list[Tensor]:
        y = scan(*self.inputs)
        return [y.detach(), *torch.autograd.grad(y, self.inputs, self.grad)]


def peak_mib(call: Callable[[], object]) -> float:
    """The most memory held during the call beyond what was held before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        result = call()
    del result
    events = prof.profiler.kineto_results.events()  # pyright: ignore
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")  # pyright: ignore
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak / 2**20


def worst_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    torch.set_num_threads(1)
    loop, pscan = transformers_loop(), mambapy_pscan()
    packages = ["torch", *(["transformers"] if loop else []), *(["mambapy"] if pscan else [])]
    console = Console(width=140)
    console.print(
        ", ".join(f"{name} {version(name)}" for name in packages), "- one thread, medians of CPU time"
    )
    if loop is None:
        console.print("transformers is not installed: forward not compared.")
    if pscan is None:
        console.print("mambapy is not installed: training time and memory not compared.")

    table = Table()
    for column in (
        "batch x pos x d_inner",
        "forward ms",
        "transformers loop",
        "ratio",
        "train ms",
        "mambapy",
        "ratio",
        "train MiB",
        "mambapy",
        "ratio",
        "largest difference",
    ):
        table.add_column(column, justify="right")
    for shape in SHAPES:
        table.add_row("x".join(map(str, shape)), *compare(Problem.sample(*shape), loop, pscan))
    console.print(table)
    console.print("difference: relative norm, over outputs and, against mambapy, every gradient")
    console.print(by_back_end())


def by_back_end() -> Table:
    table = Table()
    for column in ("batch x pos x d_inner", "", "numba ms", "torch ms", "ratio"):
        table.add_column(column, justify="right")
    for shape in SHAPES:
        problem = Problem.sample(*shape)
        for name, run in (("forward", problem.forward), ("train", problem.train)):
            numba, torch_form = cpu_ms(
                {backend: partial(on, backend, run) for backend in ("numba", "torch")}
            ).values()
            row = f"{numba:.1f}", f"{torch_form:.1f}", f"{torch_form / numba:.1f}x"
            table.add_row("x".join(map(str, shape)), name, *row)
    return table


def on(backend: str, run: Callable[[Scan], object]) -> None:
    with use_backend(backend):
        run(ours)


def compare(problem: Problem, loop: Scan | None, pscan: Scan | None) -> list[str]:
    differences = []
    forward = cpu_ms({str(scan): partial(problem.forward, scan) for scan in (ours, loop) if scan}).values()
    train = cpu_ms({str(scan): partial(problem.train, scan) for scan in (ours, pscan) if scan}).values()
    memory = [peak_mib(partial(problem.train, scan)) for scan in (ours, pscan) if scan]
    if loop:
        differences.append(worst_difference([problem.forward(ours)], [problem.forward(loop)]))
    if pscan:
        differences.append(worst_difference(problem.train(ours), problem.train(pscan)))
    cells = []
    for mine, *theirs in (forward, train, memory):
        cells += [
            f"{mine:.1f}",
            *([f"{theirs[0]:.1f}", f"{theirs[0] / mine:.1f}x"] if theirs else ["-", "-"]),
        ]
    return [*cells, f"{max(differences):.0e}" if differences else "-"]


if __name__ == "__main__":
    main()
