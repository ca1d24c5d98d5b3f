"""The law of random grammars (`tasks.grammar.Grammar.draw`), from the SplitMix64 stream of a seed.

Steele, Lea & Flood (2014) again: word i of the stream is the mixed (seed + i gamma). Integers and comparisons
alone, no library's generator or logarithm, so a seed gives the same grammar everywhere and always.
"""

from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float, Int

from tasks.categorical import BITS, MAX_ROWS, ONE
from tasks.hashing import GAMMA, shift_right, signed, splitmix, splitmix_tensor
from tasks.task import check_count


@dataclass(frozen=True)
class Drawn:
    """What `Grammar` is made of; right_hand_sides[x][i] has the symbols of rule i of nonterminal x."""

    levels: list[int]
    probabilities: list[Float[np.ndarray, " _"]]
    right_hand_sides: list[list[list[int]]]
    heads: Float[np.ndarray, "nonterminal terminal"]


def draw_grammar(
    seed: int,
    *,
    n_terminals: int,
    n_nonterminals: int,
    max_children: int,
    max_rules: int,
    max_depth: int,
    terminal_factor: float | None,
) -> Drawn:
    counts = {
        "n_terminals": n_terminals,
        "n_nonterminals": n_nonterminals,
        "max_children": max_children,
        "max_rules": max_rules,
        "max_depth": max_depth,
    }
    for name, count in counts.items():
        check_count(name, count, least=1)
    if n_nonterminals > MAX_ROWS:
        raise ValueError(f"n_nonterminals must be at most {MAX_ROWS}, got {n_nonterminals}.")
    terminal_weight = float(n_terminals if terminal_factor is None else terminal_factor)
    if not 0 < terminal_weight < float("inf"):
        raise ValueError(
            f"terminal_factor must be above 0, or the rules of the highest level have no symbol to draw, "
            f"got {terminal_factor}."
        )

    levels = (1 + below(seed, "levels", n_nonterminals, max_depth)).tolist()
    n_rules = (1 + below(seed, "rules", n_nonterminals, max_rules)).tolist()
    shape = (n_nonterminals, max_rules, max_children)
    lengths = (1 + below(seed, "lengths", n_nonterminals * max_rules, max_children)).reshape(shape[:2])
    choices = uniform(seed, "symbols", n_nonterminals * max_rules * max_children).reshape(shape)
    terminals = below(seed, "terminals", choices.size, n_terminals).reshape(shape)

    sides, probabilities = [], []
    rule_cuts = bits(seed, "probabilities", n_nonterminals * max_rules).reshape(shape[:2])
    for x in range(n_nonterminals):
        higher = [y for y in range(n_nonterminals) if levels[y] > levels[x]]
        of_x = []
        for i in range(n_rules[x]):
            length = lengths[x, i]
            picks = (choices[x, i, :length] * (len(higher) + terminal_weight)).astype(np.int64).tolist()
            of_x.append(
                [
                    n_terminals + higher[pick] if pick < len(higher) else int(terminal)
                    for pick, terminal in zip(picks, terminals[x, i], strict=False)
                ]
            )
        sides.append(of_x)
        probabilities.append(spacings(rule_cuts[x : x + 1, : n_rules[x] - 1])[0])
    head_cuts = bits(seed, "heads", n_nonterminals * (n_terminals - 1))
    return Drawn(levels, probabilities, sides, spacings(head_cuts.reshape(n_nonterminals, n_terminals - 1)))


def spacings(cuts: Int[np.ndarray, "row cut"]) -> Float[np.ndarray, "row item"]:
    """The lengths of the pieces into which each row's cuts divide the unit interval.

    For uniform cuts, in units of 2^-53, that is a draw from the flat Dirichlet law.
    """
    edges = np.pad(np.sort(cuts, axis=1), ((0, 0), (1, 1)), constant_values=((0, 0), (0, ONE)))
    return np.diff(edges, axis=1) / ONE


def words(seed: int, purpose: str, n: int) -> torch.Tensor:
    """n words of 64 bits, of the seed's stream for a purpose."""
    start = splitmix(splitmix(seed) + crc32(purpose.encode()))
    return splitmix_tensor(signed(start) + torch.arange(n) * signed(GAMMA))


def bits(seed: int, purpose: str, n: int) -> Int[np.ndarray, " n"]:
    """n uniform integers of 0 .. 2^53 - 1."""
    return shift_right(words(seed, purpose, n), 64 - BITS).numpy()


def uniform(seed: int, purpose: str, n: int) -> Float[np.ndarray, " n"]:
    """n uniform numbers of [0, 1)."""
    return bits(seed, purpose, n) / ONE


def below(seed: int, purpose: str, n: int, high: int) -> Int[np.ndarray, " n"]:
    """n integers of 0 .. high - 1, uniform to a part in 2^32 / high."""
    return ((shift_right(words(seed, purpose, n), 32) * high) >> 32).numpy()
