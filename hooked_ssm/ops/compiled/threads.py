"""Parts of a kernel's work on as many threads as torch uses: kernels hold no lock of the interpreter."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch

LEAST_WORK = 2**18  # multiplications a thread; it takes some 50 microseconds to hand work to one

_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a forked process has none of its parent's threads


def split(kernel: Callable[..., Any], parts: int, work: int, *arguments: Any) -> None:
    """kernel(first, last, *arguments) for pieces [first, last) of all `parts`, which are independent.

    work: how many multiplications all parts take.
    """
    threads = min(torch.get_num_threads(), parts, max(1, work // LEAST_WORK))
    if threads == 1:
        kernel(0, parts, *arguments)
        return
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="hooked_ssm")
    edges = [parts * i // threads for i in range(threads + 1)]
    mine, *rest = pairwise(edges)
    others = [_pools[threads].submit(kernel, *piece, *arguments) for piece in rest]
    kernel(*mine, *arguments)
    for other in others:
        other.result()
