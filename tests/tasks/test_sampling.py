"""The draws have the law they claim, and no search runs for ever.

Laws are checked on fixed seeds by Pearson's statistic, whose mean is df and standard deviation sqrt(2 df):
`assert_uniform` allows 5 deviations, so that a right law fails for one seed in some 10^5 and a wrong one,
at these counts, always.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from tasks.sampling import (
    are_distinct,
    as_generator,
    below,
    distinct_rate,
    first_accepted,
    ordered_subsets,
    subsets,
    weighted_subsets,
)

from .laws import assert_law, drawn_in_turn


def assert_uniform(rows, outcomes):
    """Each row (a list) is one of the outcomes, and they are equally frequent."""
    counts = {tuple(outcome): 0 for outcome in outcomes}
    for row in rows:
        counts[tuple(row)] += 1
    expected, df = len(rows) / len(counts), len(counts) - 1
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert abs(statistic - df) < 5 * math.sqrt(2 * df), (statistic, df)


@pytest.mark.parametrize("n_choices, size", [(5, 1), (5, 2), (6, 3), (4, 3), (4, 4)])
def test_every_ordered_subset_is_equally_likely(n_choices, size):
    # (5, 2) and (6, 3) are redrawn until distinct; (4, 3) and (4, 4) are ranked
    redrawn = size <= distinct_rate(n_choices, size) * n_choices
    assert redrawn == ((n_choices, size) in [(5, 1), (5, 2), (6, 3)])
    rows = ordered_subsets(12_000, n_choices, size, torch.Generator().manual_seed(0))
    assert_uniform(rows.tolist(), itertools.permutations(range(n_choices), size))


def test_ranking_in_several_pieces_keeps_every_row_distinct():
    rows = ordered_subsets(300, 2000, 1500, torch.Generator().manual_seed(0))
    assert rows.shape == (300, 1500) and bool(are_distinct(rows).all())
    assert rows.min() == 0 and rows.max() == 1999


def test_more_items_than_choices_are_refused():
    with pytest.raises(ValueError, match="cannot choose 5 different items among 4"):
        ordered_subsets(1, 4, 5, torch.Generator())


def test_distinct_rows_are_those_without_a_repetition():
    rows = torch.tensor([[3, 1, 2], [3, 1, 3], [2, 2, 5], [5, 6, 6], [7, 0, 8]])
    assert are_distinct(rows).tolist() == [len(set(row)) == 3 for row in rows.tolist()]


def test_distinct_rate_counts_the_distinct_draws():
    draws = list(itertools.product(range(5), repeat=3))
    assert distinct_rate(5, 3) == pytest.approx(sum(len(set(d)) == 3 for d in draws) / len(draws))


def test_first_accepted_returns_the_accepted_rows_of_the_stream_in_order():
    stream = iter(range(10_000))
    rows = first_accepted(
        500, lambda m: torch.tensor([next(stream) for _ in range(m)]), lambda x: x % 3 == 0, 1 / 3, "threes"
    )
    assert rows.tolist() == [3 * i for i in range(500)]


def test_a_search_without_success_ends_in_an_error():
    with pytest.raises(ValueError, match="gave up looking for unicorns: 0 among"):
        first_accepted(10, torch.zeros, lambda x: x > 0, 0.5, "unicorns")


@pytest.mark.parametrize("n_choices, size", [(5, 2), (4, 3)])
def test_every_subset_is_equally_likely(n_choices, size):
    rows = subsets(6000, n_choices, size, torch.Generator().manual_seed(0))
    assert_uniform(rows.tolist(), itertools.combinations(range(n_choices), size))


WEIGHTS = [1.0, 0.5, 0.3, 2.0]


def drawn_by_us(n):
    return weighted_subsets(n, torch.tensor(WEIGHTS), 3, torch.Generator().manual_seed(0)).tolist()


def drawn_by_numpy(n):
    """As the generators do that the tasks follow."""
    legacy = np.random.RandomState(0)
    shares = np.divide(WEIGHTS, sum(WEIGHTS))
    return [legacy.choice(len(WEIGHTS), 3, replace=False, p=shares).tolist() for _ in range(n)]


@pytest.mark.parametrize("draw", [drawn_by_us, drawn_by_numpy])
def test_weighted_draws_are_made_in_turn(draw):
    assert_law([tuple(row) for row in draw(8000)], drawn_in_turn(WEIGHTS, 3))


def test_weighted_draws_in_several_pieces_keep_every_row_distinct():
    weights = torch.linspace(0.1, 1, 2000, dtype=torch.float64)
    rows = weighted_subsets(300, weights, 1500, torch.Generator().manual_seed(0))
    assert rows.shape == (300, 1500) and bool(are_distinct(rows).all())
    assert rows.min() == 0 and rows.max() == 1999


def test_more_weighted_draws_than_choices_are_refused():
    with pytest.raises(ValueError, match="cannot choose 3 different items among 2"):
        weighted_subsets(1, torch.ones(2), 3, torch.Generator())


def test_below_is_uniform_under_each_bound():
    high = torch.tensor([1, 2, 3, 7]).repeat(4000)
    drawn = below(high, torch.Generator().manual_seed(0))
    for bound in (2, 3, 7):
        assert_uniform(drawn[high == bound, None].tolist(), [(i,) for i in range(bound)])
    assert drawn[high == 1].eq(0).all()


def test_a_generator_is_used_as_it_is_and_a_seed_makes_a_new_one():
    generator = torch.Generator()
    assert as_generator(generator, "train") is generator
    first, again = (as_generator(5, "train") for _ in range(2))
    assert first is not again and torch.equal(first.get_state(), again.get_state())


def test_a_seed_means_another_stream_for_each_purpose_and_seed():
    streams = {as_generator(s, purpose).initial_seed() for s in (0, 1, -1) for purpose in ("train", "test")}
    assert len(streams) == 6


def test_without_a_seed_the_system_gives_one():
    assert as_generator(None, "train").initial_seed() != as_generator(None, "train").initial_seed()


@pytest.mark.parametrize("wrong", ["0", 1.5, True])
def test_what_is_no_seed_is_refused(wrong):
    with pytest.raises(TypeError):
        as_generator(wrong, "train")
