"""Which form of the long convolution is quicker, by length: python -m benchmarks.long_conv

Per length, batch and channels, in float32 on one thread: the direct form (by the filter's Toeplitz matrix or,
with a filter a document, lag by lag) and the Fourier form, without gradients and with the backward pass.
Process CPU times, medians over rounds in which the two take turns. `DIRECT_POSITIONS` of
`hooked_ssm.ops.long_conv` is about where the Fourier form becomes the quicker one.
"""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.timing import cpu_ms
from hooked_ssm.ops.long_conv import DIRECT_POSITIONS, fft_conv, lagwise_conv, toeplitz_conv

LENGTHS = [36, 64, 96, 128, 256, 512, 1024]
CHANNELS = [64, 256, 512]
BATCHES = [1, 8, 32]
LARGEST_INPUT, LARGEST_MATRIX = 2**18, 2**26  # entries: the direct form's matrices have length**2 a channel

Conv = Callable[[Tensor, Tensor, int], Tensor]


def forward(conv: Conv, x: Tensor, filter: Tensor) -> Tensor:
    with torch.no_grad():
        return conv(x, filter, x.shape[1])


def train(conv: Conv, x: Tensor, filter: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(conv(x, filter, x.shape[1]), (x, filter), grad)


def compare(batch: int, length: int, channels: int, per_document: bool) -> list[str]:
    g = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(batch, length, channels, generator=g) for _ in range(2))
    filter_shape = (batch, length, channels) if per_document else (length, channels)
    filter = torch.randn(filter_shape, generator=g)
    x.requires_grad_()
    filter.requires_grad_()
    forms = {"direct": lagwise_conv if per_document else toeplitz_conv, "fft": fft_conv}
    cells = []
    for run, args in ((forward, (x, filter)), (train, (x, filter, grad))):
        times = cpu_ms(
            {name: partial(run, conv, *args) for name, conv in forms.items()}, rounds=5, seconds_a_turn=0.02
        )
        direct, fourier = times["direct"], times["fft"]
        cells += [f"{direct:.2f}", f"{fourier:.2f}", f"{direct / fourier:.2f}"]
    return cells


def main() -> None:
    torch.set_num_threads(1)
    console = Console(width=120)
    console.print(
        f"torch {version('torch')}, one thread, medians of CPU time; direct up to {DIRECT_POSITIONS}"
    )
    for per_document in (False, True):
        table = Table(title="a filter a document" if per_document else "one filter")
        for column in ("pos", "batch", "channels", *(["direct ms", "fft ms", "ratio"] * 2)):
            table.add_column(column, justify="right")
        for length in LENGTHS:
            for batch in BATCHES:
                for channels in CHANNELS:
                    if batch * length * channels <= LARGEST_INPUT and length**2 * channels <= LARGEST_MATRIX:
                        table.add_row(
                            *map(str, (length, batch, channels)),
                            *compare(batch, length, channels, per_document),
                        )
        console.print(table)
    console.print("first three times: forward without gradients; last three: forward and backward")


if __name__ == "__main__":
    main()
