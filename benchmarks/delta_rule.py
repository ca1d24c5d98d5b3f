"""Ours against transformers' gated delta rule, and the lengths of chunks: python -m benchmarks.delta_rule

32 documents, one head, d_key = d_value = 64, float32, one thread. Process CPU times, medians over rounds in
which the calls take turns; forward without gradients, then forward and backward. `LONGEST_CHUNK` of
`hooked_ssm.ops.chunked_delta_rule` is about up to where one chunk is the quickest, `CHUNK` the quickest
length beyond.
"""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from benchmarks.timing import cpu_ms
from hooked_ssm.ops import delta_rule

BATCH, HEADS, WIDTH = 32, 1, 64
LENGTHS = [36, 512]
CHUNKED_LENGTHS = [36, 64, 80, 100, 128, 256, 512]
CHUNKS = [None, 16, 32, 48, 64, 100]

Rule = Callable[..., tuple[Tensor, Tensor | None]]


def inputs(length: int, decay: bool) -> list[Tensor]:
    """q, k, v, beta and, if there is to be a decay, its logarithm."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(BATCH, length, HEADS, WIDTH, generator=g) for _ in range(3))
    beta, log_decay = (torch.rand(BATCH, length, HEADS, generator=g) for _ in range(2))
    return [q, F.normalize(k, dim=-1), v, beta, *([-log_decay] if decay else [])]


def theirs(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor | None]:
    return torch_chunk_gated_delta_rule(q, k, v, log_decay, beta)


def forward(rule: Rule, *args: Tensor) -> None:
    with torch.no_grad():
        rule(*args)


def train(rule: Rule, *args: Tensor) -> None:
    args = tuple(x.detach().requires_grad_() for x in args)
    torch.autograd.grad(rule(*args)[0].sum(), args)


def against_transformers() -> Table:
    table = Table(title=f"transformers {version('transformers')} (always with decay) against ours")
    for column in ("pos", "", "theirs ms", "ours, with decay", "ratio", "ours, without", "ratio"):
        table.add_column(column, justify="right")
    for length in LENGTHS:
        with_decay, without = inputs(length, True), inputs(length, False)
        for run in (forward, train):
            times = cpu_ms(
                {
                    "theirs": partial(run, theirs, *with_decay),
                    "decay": partial(run, delta_rule, *with_decay),
                    "none": partial(run, delta_rule, *without),
                }
            )
            cells = [f"{times['theirs']:.2f}"]
            for ours in ("decay", "none"):
                cells += [f"{times[ours]:.2f}", f"{times['theirs'] / times[ours]:.2f}"]
            table.add_row(str(length), run.__name__, *cells)
    return table


def by_chunk() -> Table:
    table = Table(title="ours with decay, ms by most positions in a chunk")
    for column in ("pos", "", *("one chunk" if chunk is None else str(chunk) for chunk in CHUNKS)):
        table.add_column(column, justify="right")
    for length in CHUNKED_LENGTHS:
        args = inputs(length, True)
        for run in (forward, train):
            calls = {
                str(chunk): partial(run, partial(delta_rule, chunk=chunk or length), *args)
                for chunk in CHUNKS
                if chunk is None or chunk < length
            }
            times = cpu_ms(calls, rounds=5, seconds_a_turn=0.05)
            cells = [f"{times[str(chunk)]:.2f}" if str(chunk) in times else "" for chunk in CHUNKS]
            table.add_row(str(length), run.__name__, *cells)
    return table


def main() -> None:
    torch.set_num_threads(1)
    console = Console(width=120)
    console.print(f"torch {version('torch')}, one thread, medians of CPU time")
    console.print(against_transformers())
    console.print(by_chunk())


if __name__ == "__main__":
    main()
