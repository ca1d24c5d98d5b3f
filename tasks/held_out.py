"""A held-out set of pairs that needs no table: membership is a hash of the pair.

The pair, packed into one 64-bit word and offset by the hashed seed, is hashed (`tasks.hashing`). It is held
out where the result, as a fraction of 2^64, lies below `fraction`. So the set grows with `fraction` and does
not depend on the sizes of the vocabularies.
"""

from jaxtyping import Bool, Int
from torch import Tensor

from tasks.hashing import shift_right, signed, splitmix, splitmix_tensor


def is_held_out(
    first: Int[Tensor, "*shape"], second: Int[Tensor, "*shape"], fraction: float, seed: int
) -> Bool[Tensor, "*shape"]:
    """Whether each pair (first, second) of non-negative integers below 2^31 belongs to the held-out set."""
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), got {fraction}.")
    mixed = splitmix_tensor((first.long() << 32) + second.long() + signed(splitmix(seed)))
    return shift_right(mixed, 1) < int(fraction * 2.0**63)  # 63 bits, which int64 compares as unsigned
