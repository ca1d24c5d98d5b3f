"""Which bodies of documents are kept for the test: a hash of the body decides.

    h(body) = sum over words of (label + 1) m(place)   modulo 2^64, m(place) odd and random-looking

mixed with the hashed seed (`tasks.hashing`). A body is a test body where the result, as a fraction of 2^64,
lies below `share`. So no body is in both splits, however many documents are drawn, and nothing is stored.
"""

from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool

from tasks.hashing import shift_right, signed, splitmix, splitmix_tensor
from tasks.trees import Trees

SALT = crc32(b"test bodies")  # apart from the held-out pairs of the same seed


def is_test_body(trees: Trees, share: float, seed: int) -> Bool[np.ndarray, " tree"]:
    """Whether the body of each tree is kept for the test, from its labels in their order alone."""
    first, longest = trees.first, int(trees.length.max(initial=0))
    place = np.arange(len(trees.label)) - np.repeat(first, trees.length)
    multipliers = splitmix_tensor(torch.arange(longest)).numpy() | 1
    sums = np.add.reduceat((trees.label + 1) * multipliers[place], first) if len(first) else first
    mixed = splitmix_tensor(torch.from_numpy(sums) + signed(splitmix(splitmix(seed) + SALT)))
    return (shift_right(mixed, 1) < int(share * 2.0**63)).numpy()
