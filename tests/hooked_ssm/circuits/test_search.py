"""The order of edges, and which of them are kept."""

import pytest
import torch

from hooked_ssm.circuits.edges import EdgeIndex
from hooked_ssm.circuits.question import Trial
from hooked_ssm.circuits.search import order_of, shortest, thinned

# To the logits from the embedding by a, by b, by a and b, and straight.
PAIRS = [(0, 1), (1, 3), (0, 2), (2, 3), (1, 2), (0, 3)]
INDEX = EdgeIndex(
    ["embed", "a", "b", "logits"],
    [("", 1)] * 4,
    ["key"],
    torch.tensor([[a, 0, 0, b, 0, 0] for a, b in PAIRS]),
)
SIZES = torch.tensor([0.9, 0.1, 0.8, 0.7, 0.3, 0.2])


class Needs(Trial):
    """Faithful to one site where one of some ways through the graph is whole, and to another always."""

    def __init__(self, ways):
        self.index, self.ways = INDEX, ways
        self.asked = 0

    def faithfulness(self, circuits):
        self.asked += len(circuits)
        shares = [max(float(all(edges[list(way)])) for way in self.ways) for edges in circuits]
        return torch.tensor([[share, 1.0] for share in shares])


def edges(*numbers):
    out = torch.zeros(len(INDEX), dtype=torch.bool)
    out[list(numbers)] = True
    return out


def test_thresholds_take_the_largest_first():
    assert order_of(INDEX, SIZES, "threshold").tolist() == [0, 2, 3, 4, 5, 1]


def test_greedy_grows_from_the_logits():
    """2 -> 3 first; then what leads to 2; never an edge whose reader is not there yet."""
    assert order_of(INDEX, SIZES, "greedy").tolist() == [3, 2, 4, 0, 5, 1]


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="method must be one of threshold, greedy, got 'best'"):
        order_of(INDEX, SIZES, "best")


def test_as_many_edges_as_it_takes():
    order = order_of(INDEX, SIZES, "threshold")
    assert shortest(Needs([(2, 3)]), order, 0.9).tolist() == edges(2, 3).tolist()  # 0 leads nowhere yet
    assert shortest(Needs([(0, 4, 3)]), order, 0.9).tolist() == edges(0, 2, 3, 4).tolist()
    assert shortest(Needs([(0, 1)]), order, 0.9).all()
    assert shortest(Needs([()]), order, 0.9).sum() == 0


def test_edges_that_are_not_needed_go_and_no_other():
    everything = torch.ones(len(INDEX), dtype=torch.bool)
    for way in [(0, 1), (2, 3), (5,), (0, 4, 3)]:
        found = thinned(Needs([way]), everything, SIZES, 0.9, verbose=False)
        assert found.tolist() == edges(*way).tolist()
    both = thinned(Needs([(0, 1), (2, 3)]), everything, SIZES, 0.9, verbose=False)
    assert both.tolist() == edges(2, 3).tolist()  # the way of larger scores


def test_many_needless_edges_go_at_once():
    trial = Needs([(5,)])
    thinned(trial, torch.ones(len(INDEX), dtype=torch.bool), SIZES, 0.9, verbose=False)
    assert trial.asked < len(INDEX)
