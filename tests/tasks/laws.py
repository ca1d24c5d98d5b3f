"""Whether outcomes have the law they should, on fixed seeds.

Pearson's statistic has mean df and standard deviation sqrt(2 df): 5 deviations are allowed, so that a right
law fails for one seed in some 10^5, and a wrong one, at the tests' counts, always.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence


def assert_law(outcomes: Sequence[Hashable], law: dict) -> None:
    """Each outcome has about the probability that the law gives it; those of probability 0 do not occur."""
    counts = Counter(outcomes)
    assert set(counts) <= {outcome for outcome, p in law.items() if p > 0}
    assert math.isclose(sum(law.values()), 1, rel_tol=1e-9)
    expected = {outcome: p * len(outcomes) for outcome, p in law.items() if p > 0}
    assert min(expected.values()) > 5
    statistic = sum((counts[outcome] - n) ** 2 / n for outcome, n in expected.items())
    df = len(expected) - 1
    assert abs(statistic - df) < 5 * math.sqrt(2 * df) + 1e-9, (statistic, df)


def assert_equally_likely(outcomes: Sequence[Hashable], possible: Sequence[Hashable]) -> None:
    assert_law(outcomes, {outcome: 1 / len(possible) for outcome in possible})


def drawn_in_turn(weights: Sequence[float], size: int) -> dict[tuple[int, ...], float]:
    """The law of `size` draws without replacement, each in proportion to the weights that are left."""
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(size):
        law = {
            (*drawn, i): p * weight / sum(w for j, w in enumerate(weights) if j not in drawn)
            for drawn, p in law.items()
            for i, weight in enumerate(weights)
            if i not in drawn
        }
    return law
