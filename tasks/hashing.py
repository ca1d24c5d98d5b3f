"""SplitMix64, a mixer of 64-bit words: a random-looking bijection, the same on every machine.

Steele, Lea & Flood (2014), "Fast splittable pseudorandom number generators": step the word by the golden
gamma, then twice xor it with its own high bits and multiply, then xor once more.
"""

from jaxtyping import Int
from torch import Tensor

MASK = (1 << 64) - 1
GAMMA, MULTIPLY_1, MULTIPLY_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def splitmix(word: int) -> int:
    """The mixed word, in 0 .. 2^64 - 1, of any integer (taken modulo 2^64)."""
    word = (word + GAMMA) & MASK
    word = ((word ^ (word >> 30)) * MULTIPLY_1) & MASK
    word = ((word ^ (word >> 27)) * MULTIPLY_2) & MASK
    return word ^ (word >> 31)


def splitmix_tensor(word: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """`splitmix` of each entry of an int64 tensor; results of 2^63 and above are shown as negative."""
    word = word + signed(GAMMA)
    word = (word ^ shift_right(word, 30)) * signed(MULTIPLY_1)
    word = (word ^ shift_right(word, 27)) * signed(MULTIPLY_2)
    return word ^ shift_right(word, 31)


def signed(word: int) -> int:
    """The int64 with the bits of a word in 0 .. 2^64 - 1."""
    return word - (1 << 64) if word >> 63 else word


def shift_right(word: Int[Tensor, "*shape"], by: int) -> Int[Tensor, "*shape"]:
    """The bits moved right by at least one place, zeros moving in (`>>` on int64 copies the sign)."""
    return (word >> by) & ((1 << (64 - by)) - 1)
