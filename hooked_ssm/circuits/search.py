"""From scores of edges to few edges that do what the model does.

in order      by size of the score ("threshold"), or grown from the logits, each time by the edge with the
              largest score into what is there ("greedy": Hanna et al. 2024, arXiv:2403.17806)
as many       as it takes to be faithful, by bisection
thinned out   the least first, some at once while that does no harm, then one by one: an edge goes if the
              rest is still faithful (Conmy et al. 2023, arXiv:2304.14997)
"""

import heapq

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from hooked_ssm.circuits.edges import EdgeIndex
from hooked_ssm.circuits.question import Trial
from hooked_ssm.patching.sweep import BAR_DELAY

METHODS = ("threshold", "greedy")


def order_of(index: EdgeIndex, sizes: Float[Tensor, " edge"], method: str) -> Int[Tensor, " edge"]:
    """All edges, those to take first first."""
    if method == "threshold":
        return sizes.argsort(descending=True, stable=True)
    if method != "greedy":
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    into: dict[tuple[int, ...], list[int]] = {}
    for number, end in enumerate(index.ends.tolist()):
        into.setdefault(tuple(end[3:]), []).append(number)
    logits = (len(index.hooks) - 1, 0, 0)
    there, order, size = {logits}, [], sizes.tolist()
    heap = [(-size[number], number) for number in into[logits]]
    heapq.heapify(heap)
    while heap:
        _, number = heapq.heappop(heap)
        order.append(number)
        writer = tuple(index.ends[number, :3].tolist())
        if writer not in there:
            there.add(writer)
            for other in into.get(writer, ()):
                heapq.heappush(heap, (-size[other], other))
    return torch.tensor(order)


def faithful(trial: Trial, edges: Bool[Tensor, " edge"], target: float) -> bool:
    """Whether the circuit keeps at least this share of every question's metric."""
    return bool(trial.faithfulness(edges[None]).min() >= target)


def shortest(trial: Trial, order: Int[Tensor, " edge"], target: float) -> Bool[Tensor, " edge"]:
    """As many of the first edges as it takes: the end of a bisection, so with fewer it may still be faithful
    where a longer list was not."""

    def first(count: int) -> Tensor:
        edges = torch.zeros(len(trial.index), dtype=torch.bool)
        edges[order[:count]] = True
        return trial.index.connected(edges)

    low, high = 0, 1
    while high < len(order) and not faithful(trial, first(high), target):
        low, high = high, min(2 * high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if faithful(trial, first(middle), target) else (middle, high)
    return first(high)


def thinned(
    trial: Trial,
    edges: Bool[Tensor, " edge"],
    sizes: Float[Tensor, " edge"],
    target: float,
    *,
    verbose: bool,
) -> Bool[Tensor, " edge"]:
    """Without the edges that can be left out. Each of those left was needed when its turn came."""
    kept = torch.zeros_like(edges)  # known to be needed
    at_once = max(1, int(edges.sum()) // 4)
    with tqdm(total=int(edges.sum()), desc="circuit", delay=BAR_DELAY, disable=not verbose) as bar:
        while (edges & ~kept).any():
            left = (edges & ~kept).nonzero()[:, 0]
            least = left[sizes[left].argsort(stable=True)][:at_once]
            without = edges.clone()
            without[least] = False
            without = trial.index.connected(without)
            if (kept <= without).all() and faithful(trial, without, target):
                edges, at_once = without, 2 * at_once
            elif len(least) == 1:
                kept[least] = True
            else:
                at_once = len(least) // 2
            bar.update(bar.total - int((edges & ~kept).sum()) - bar.n)
    return edges
