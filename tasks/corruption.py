"""The tokens that replace another in a corrupted document, drawn once a document.

A kind of token (the keys, the values, the terminals) is a range of ids: first .. first + count - 1.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from tasks.sampling import below


def absent_token(
    tokens: Int[Tensor, "batch pos"], first: int, count: int, generator: torch.Generator, kind: str
) -> Int[Tensor, " batch"]:
    """For each document, a uniform token of the kind that it does not contain."""
    number = tokens - first
    used = torch.where((number >= 0) & (number < count), number, count).sort(-1).values
    repeated = torch.nn.functional.pad(used[:, 1:] == used[:, :-1], (1, 0))
    used = used.masked_fill(repeated, count).sort(-1).values  # ascending and distinct, then fillers
    real = used < count
    n_absent = count - real.sum(-1)
    if not bool((n_absent > 0).all()):
        raise ValueError(
            f"no {kind} is left to corrupt with: all {count} of them occur in document "
            f"{int((n_absent == 0).nonzero()[0])}."
        )
    rank = below(n_absent, generator)
    # below the absent number of this rank lie `rank` absent ones, and the j-th used one if used_j - j <= rank
    skipped = real & (used - torch.arange(used.shape[1], device=used.device) <= rank[:, None])
    return first + rank + skipped.sum(-1)


def original_token(
    old: Int[Tensor, " batch"], first: int, count: int, generator: torch.Generator
) -> Int[Tensor, " batch"]:
    """The original evaluation's draw: r uniform on first .. first + count - 2, plus 1 where r >= old.

    Uniform over the kind without `old` where `old` is of that kind. Where it lies above (a value replaced by
    a key) the last of the kind is never drawn; where it lies below, the first never is.
    """
    if count < 2:
        raise ValueError(f"the original procedure needs a kind of at least 2 tokens, got {count}.")
    drawn = first + torch.randint(count - 1, (len(old),), generator=generator).to(old.device)
    return drawn + (drawn >= old)
