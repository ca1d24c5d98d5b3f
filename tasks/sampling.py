"""Random draws that depend on a seed alone, and rejection sampling that cannot run for ever."""

import math
from collections.abc import Callable
from functools import cache
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tasks.hashing import splitmix

CHUNK = 4096  # rows drawn at once: a chunk of 16 int64 a row stays in a core's second-level cache


def as_generator(generator: torch.Generator | int | None, purpose: str) -> torch.Generator:
    """A CPU generator: the one given, one made from a seed, or (None) one seeded by the system.

    A seed stands for one stream a purpose, so that the train documents, the test documents and the
    corruptions of the same seed are independent. torch's global generator is neither read nor advanced.
    """
    if generator is None:
        fresh = torch.Generator()
        fresh.seed()
        return fresh
    if isinstance(generator, bool) or not isinstance(generator, (int, torch.Generator)):
        raise TypeError(f"generator must be a torch.Generator, a seed or None, got {generator!r}.")
    if isinstance(generator, int):
        return torch.Generator().manual_seed(splitmix(splitmix(generator) + crc32(purpose.encode())))
    if generator.device.type != "cpu":
        raise ValueError(
            f"generator must be on the CPU, so that a seed gives the same documents everywhere, "
            f"got one on {generator.device}."
        )
    return generator


def first_accepted(
    n: int,
    draw: Callable[[int], Tensor],
    accept: Callable[[Tensor], Bool[Tensor, " rows"]],
    rate: float,
    what: str,
) -> Tensor:
    """The first n accepted rows of a stream of independent rows: exactly the law of `draw` given `accept`.

    `rate` is the expected share of accepted rows. Where less than a hundredth of it is found, the search
    stops with a ValueError about `what`, after at most 100 (n + 10) / rate rows.
    """
    found, n_found, n_drawn = [], 0, 0
    while n_found < n:
        if n_drawn * rate > 100 * (n_found + 10):
            raise ValueError(
                f"gave up looking for {what}: {n_found} among {n_drawn} draws, where about "
                f"{n_drawn * rate:.0f} were expected."
            )
        rows = draw(min(CHUNK, math.ceil(1.05 * (n - n_found) / rate) + 4))
        n_drawn += len(rows)
        rows = rows[accept(rows)][: n - n_found]
        n_found += len(rows)
        found.append(rows)
    return torch.cat(found)


def are_distinct(rows: Int[Tensor, "rows size"]) -> Bool[Tensor, " rows"]:
    """Whether all entries of a row differ."""
    ordered = torch.from_numpy(np.sort(rows.numpy()))  # on short rows three times as fast as torch's sort
    return (ordered[:, 1:] != ordered[:, :-1]).all(-1)


@cache
def distinct_rate(n_choices: int, size: int) -> float:
    """The probability that `size` independent uniform draws from `n_choices` all differ."""
    return math.prod(1 - i / n_choices for i in range(size))


def ordered_subsets(n: int, n_choices: int, size: int, generator: torch.Generator) -> Int[Tensor, "n size"]:
    """n rows, each `size` different integers of 0 .. n_choices - 1, every ordering equally likely."""
    if size > n_choices:
        raise ValueError(f"cannot choose {size} different items among {n_choices}.")
    if size == 1:
        return torch.randint(n_choices, (n, 1), generator=generator)
    rate = distinct_rate(n_choices, size)
    if size <= rate * n_choices:  # redrawing until all differ takes fewer numbers than ranking all choices
        return first_accepted(
            n,
            lambda m: torch.randint(n_choices, (m, size), generator=generator),
            are_distinct,
            rate,
            f"{size} different items among {n_choices}",
        )
    subsets = torch.empty((n, size), dtype=torch.int64)
    for some in subsets.split(max(1, CHUNK * 16 // n_choices)):
        # double precision: 53 random bits a choice, so that ties, which would favour an order, do not happen
        scores = torch.rand(len(some), n_choices, generator=generator, dtype=torch.float64)
        some.copy_(scores.topk(size).indices)
    return subsets


def subsets(n: int, n_choices: int, size: int, generator: torch.Generator) -> Int[Tensor, "n size"]:
    """n rows, each `size` different integers of 0 .. n_choices - 1 in ascending order, equally likely."""
    return torch.from_numpy(np.sort(ordered_subsets(n, n_choices, size, generator).numpy()))


def weighted_subsets(
    n: int, weights: Float[Tensor, " n_choices"], size: int, generator: torch.Generator
) -> Int[Tensor, "n size"]:
    """n rows, each `size` different integers of 0 .. n_choices - 1, drawn one after the other.

    Each draw takes a number with probability proportional to its weight among those not yet taken: so do the
    first `size` arrivals of independent exponential clocks whose rates are the weights.
    """
    if size > len(weights):
        raise ValueError(f"cannot choose {size} different items among {len(weights)}.")
    subsets = torch.empty((n, size), dtype=torch.int64)
    for some in subsets.split(max(1, CHUNK * 64 // len(weights))):
        uniform = torch.rand(len(some), len(weights), generator=generator, dtype=torch.float64)
        arrivals = uniform.log_().neg_() / weights
        order = np.argsort(arrivals.numpy(), axis=1)  # on short rows three times as fast as torch's topk
        some.copy_(torch.from_numpy(order[:, :size]))
    return subsets


def below(high: Int[Tensor, " batch"], generator: torch.Generator) -> Int[Tensor, " batch"]:
    """For each entry, a uniform integer of 0 .. high - 1, on the device of `high`."""
    uniform = torch.rand(len(high), generator=generator, dtype=torch.float64).to(high.device)
    return (uniform * high).long()
