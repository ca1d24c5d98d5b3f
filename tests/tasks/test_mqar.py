"""Multi-query associative recall is what its definition says, document by document and in distribution."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import BOS, EOS, IGNORE, PAD, Documents, MultiQueryAssociativeRecall, is_held_out

from .laws import assert_equally_likely, assert_law, drawn_in_turn

SMALL = dict(n_keys=5, n_values=4, n_pairs=2, length=12)


def offsets(task, docs, b):
    """At which offset behind the divider each pair of document b is labelled, in the order of the body."""
    n, start = task.n_pairs, 2 + 2 * task.n_pairs
    keys = docs.tokens[b, 1 : 1 + 2 * n : 2].tolist()
    queried = {
        int(docs.tokens[b, p]): p - start for p in (docs.labels[b] != IGNORE).nonzero().flatten().tolist()
    }
    return [queried[key] for key in keys]


def check_document(task, docs, b):
    """Document b obeys the definition, read token by token."""
    tokens, labels = docs.tokens[b].tolist(), docs.labels[b].tolist()
    where = {name: int(pos[b]) for name, pos in docs.positions.items()}
    n, first_value = task.n_pairs, 3 + task.n_keys
    divider = 1 + 2 * n
    assert len(tokens) == task.n_ctx == task.length + 2
    assert (tokens[0], tokens[divider]) == (BOS, EOS)
    keys, values = tokens[1:divider:2], tokens[2:divider:2]
    assert set(keys) <= set(range(3, first_value)) and len(set(keys)) == n
    assert set(values) <= set(range(first_value, task.d_vocab)) and len(set(values)) == n

    value_of = dict(zip(keys, values, strict=True))
    supervised = {p: label for p, label in enumerate(labels) if label != IGNORE}
    assert sorted(tokens[p] for p in supervised) == sorted(keys)
    for p, label in supervised.items():
        assert p > divider and (p - divider) % 2 == 1 and value_of[tokens[p]] == label
    filler = [token for p, token in enumerate(tokens) if p > divider and p not in supervised]
    assert len(filler) == task.length - 3 * n
    if task.random_filler:
        assert set(filler) <= set(range(3, task.d_vocab))
    else:
        assert set(filler) <= {PAD}

    asked = tokens[where["query_item"]]
    assert where["query_item"] in supervised
    assert docs.answer[b] == value_of[asked] and docs.answer_pos[b] == where["query_item"]
    tail = tokens[divider + 1 :]
    assert (asked, value_of[asked]) not in itertools.pairwise(tail)
    assert where == {
        "query_item_orig": 1 + 2 * keys.index(asked),
        "target_item_orig": 2 + 2 * keys.index(asked),
        "divider": divider,
        "query_item": where["query_item"],
        "key": 1 + 2 * keys.index(asked),
        "value": 2 + 2 * keys.index(asked),
        "query": where["query_item"],
    }


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n_pairs=st.integers(1, 6),
    spare=st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20)),
    power=st.floats(0, 1),
    random_filler=st.booleans(),
    seed=st.integers(0, 2**32),
    split=st.sampled_from(["train", "test"]),
)
def test_every_document_obeys_the_definition(n_pairs, spare, power, random_filler, seed, split):
    keys, values, length = n_pairs + spare[0], n_pairs + spare[1], 4 * n_pairs + 2 * spare[2]
    task = MultiQueryAssociativeRecall(keys, values, n_pairs, length, power, random_filler)
    docs = task.sample(5, seed, split)
    for b in range(5):
        check_document(task, docs, b)


def test_the_defaults_are_the_published_setting():
    """A vocabulary of 8192, of which the original's id 0 is filler; 64 tokens, 8 pairs."""
    task = MultiQueryAssociativeRecall()
    assert (task.n_keys, task.n_values, task.n_ctx, task.d_vocab) == (4095, 4096, 66, 8194)
    docs = task.sample(200, 0)
    for b in range(200):
        check_document(task, docs, b)


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0])
def test_queries_are_placed_in_turn_by_the_power_law(power):
    task = MultiQueryAssociativeRecall(**SMALL, power=power)
    docs = task.sample(8000, 0)
    weights = [
        i ** (power - 1) for i in range(1, 5)
    ]  # 4 of the 8 places behind the divider are at even offsets
    law = {tuple(2 * i for i in drawn): p for drawn, p in drawn_in_turn(weights, 2).items()}
    assert_law([tuple(offsets(task, docs, b)) for b in range(8000)], law)


def test_pairs_and_the_one_that_is_asked_for_are_uniform():
    task = MultiQueryAssociativeRecall(**SMALL)
    docs = task.sample(20_000, 0)
    possible = [
        (k1, v1, k2, v2)
        for k1, k2 in itertools.permutations(range(3, 8), 2)
        for v1, v2 in itertools.permutations(range(8, 12), 2)
    ]
    assert_equally_likely([tuple(body) for body in docs.tokens[:, 1:5].tolist()], possible)
    assert_equally_likely(docs.positions["key"].tolist(), [1, 3])


def test_filler_is_uniform_over_keys_and_values():
    task = MultiQueryAssociativeRecall(n_keys=30, n_values=20, n_pairs=1, length=24)
    docs = task.sample(4000, 0)
    filler = docs.tokens[:, 4:][docs.labels[:, 4:] == IGNORE]
    # what is drawn again so that no pair repeats is one token in some 2500 and shifts no count by a deviation
    assert_equally_likely(filler.tolist(), range(3, 53))


def test_filler_may_repeat_keys_and_other_pairs_but_not_the_one_that_is_asked_for():
    task = MultiQueryAssociativeRecall(n_keys=2, n_values=2, n_pairs=2, length=40)
    docs = task.sample(500, 0)
    tail = docs.tokens[:, 6:]
    repeated = torch.zeros(2, dtype=torch.int64)
    for b in range(500):
        asked = (int(docs.positions["key"][b]) - 1) // 2
        body = docs.tokens[b, 1:5].view(2, 2)
        for pair in range(2):
            same = (tail[b, :-1] == body[pair, 0]) & (tail[b, 1:] == body[pair, 1])
            repeated[int(pair != asked)] += int(same.any())
    assert repeated[0] == 0 and repeated[1] > 400


@pytest.mark.parametrize("split", ["train", "test"])
def test_held_out_pairs_are_absent_from_training_and_always_asked_in_test(split):
    task = MultiQueryAssociativeRecall(n_keys=256, n_values=256, n_pairs=6, length=30, held_out=0.2)
    docs = task.sample(3000, 0, split)
    held = is_held_out(docs.tokens[:, 1:13:2] - 3, docs.tokens[:, 2:13:2] - 259, 0.2, 0)
    pair = (docs.positions["key"] - 1) // 2
    if split == "train":
        assert not held.any()
    else:
        assert held.gather(1, pair[:, None]).all()
        others = (int(held.sum()) - 3000) / (3000 * 5)
        assert abs(others - 0.2) < 5 * (0.16 / (3000 * 5)) ** 0.5  # as free as ever, within 5 deviations
    assert_equally_likely(pair.tolist(), range(6))
    for b in range(50):
        check_document(task, docs, b)


GOLDEN = [
    (
        {},
        "train",
        [
            [1, 20, 77, 4, 90, 2, 20, 76, 101, 7, 46, 52, 4, 4, 12],
            [1, 25, 76, 51, 71, 2, 25, 9, 51, 44, 52, 44, 24, 20, 8],
        ],
    ),
    (
        {},
        "test",
        [
            [1, 20, 77, 43, 72, 2, 43, 40, 20, 98, 3, 99, 3, 46, 6],
            [1, 36, 80, 11, 65, 2, 36, 83, 58, 69, 83, 80, 11, 82, 6],
        ],
    ),
    (
        dict(random_filler=False, power=1.0),
        "train",
        [
            [1, 20, 77, 4, 90, 2, 4, 0, 0, 0, 0, 0, 20, 0, 6],
            [1, 25, 76, 51, 71, 2, 25, 0, 0, 0, 51, 0, 0, 0, 10],
        ],
    ),
    (
        dict(held_out=0.3),
        "test",
        [
            [1, 5, 61, 36, 89, 2, 15, 99, 36, 27, 5, 49, 94, 58, 8],
            [1, 11, 101, 19, 90, 2, 74, 11, 19, 10, 20, 7, 11, 102, 12],
        ],
    ),
]


@pytest.mark.parametrize("setting, split, tokens", GOLDEN)
def test_golden_documents(setting, split, tokens):
    """Published numbers rest on the documents of a seed: these never change."""
    docs = MultiQueryAssociativeRecall(**(SMALL | dict(n_keys=50, n_values=50) | setting)).sample(2, 0, split)
    assert [[*row, at] for row, at in zip(docs.tokens.tolist(), docs.answer_pos.tolist())] == tokens


@pytest.mark.parametrize(
    "site, procedure, possible",
    [
        ("key", "unambiguous", range(3, 13)),
        ("query", "unambiguous", range(3, 13)),
        ("value", "unambiguous", range(13, 21)),
        ("key", "original", range(3, 13)),
        ("value", "original", range(3, 12)),  # a key, never the last
    ],
)
def test_a_corruption_draws_from_its_kind(site, procedure, possible):
    task = MultiQueryAssociativeRecall(n_keys=10, n_values=8, n_pairs=2, length=12, random_filler=False)
    docs = task.sample(2000, 0)
    where = docs.positions[site][:, None]
    new = task.corrupt(docs, site, 0, procedure).tokens.gather(1, where)
    assert sorted(set(new.flatten().tolist())) == list(possible)
    absent = ~(docs.tokens == new).any(1)
    assert bool(absent.all()) == (procedure == "unambiguous")


def test_heuristics_score_their_rules_on_documents_worked_by_hand():
    # keys 3 4 5, values 6 7 8; queries of 4, then 3, then filler; the third pair is asked for last
    task = MultiQueryAssociativeRecall(n_keys=3, n_values=3, n_pairs=3, length=14)
    row = [1, 3, 6, 4, 7, 5, 8, 2, 4, 6, 3, 3, 5, 6, 6, 6]
    label = [IGNORE] * 8 + [7, IGNORE, 6, IGNORE, 8, IGNORE, IGNORE, IGNORE]
    tokens, labels = torch.tensor([row] * 3), torch.tensor([label] * 3)
    query = torch.tensor([8, 10, 12])  # as if each of the three were the one that is asked for
    key = torch.tensor([3, 1, 5])
    positions = {"query_item": query, "key": key, "value": key + 1}
    docs = Documents(tokens, torch.tensor([7, 6, 8]), query, labels, positions)
    scores = {name: score.tolist() for name, score in task.heuristics(docs).items()}
    assert scores == {
        "uniform_vocabulary": [pytest.approx(1 / 9)] * 3,
        "uniform_tokens": [pytest.approx(1 / 6)] * 3,
        "uniform_candidates": [pytest.approx(1 / 3)] * 3,
        "first_candidate": [0, 1, 0],
        "last_candidate": [0, 0, 1],
        "in_order": [0, 0, 1],
        "induction": [1, 1, 1],
        "reverse_induction": [0, 0, 0],
    }
    broken = tokens.clone()
    broken[:, 1] = 4  # the key 3 is gone; 4 has a second occurrence before the first
    scores = task.heuristics(replace(docs, tokens=broken))
    assert scores["induction"].tolist() == [1, 0, 1]


def test_the_power_law_favours_queries_in_order():
    scores = [
        float(task.heuristics(task.sample(20_000, 0))["in_order"].mean())
        for task in (MultiQueryAssociativeRecall(power=power) for power in (0.0, 1.0))
    ]
    assert scores[0] > 0.15 and abs(scores[1] - 1 / 8) < 5 * (7 / 64 / 20_000) ** 0.5


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(length=30), "length must be even and at least 4 n_pairs.* got length=30, n_pairs=8"),
        (dict(length=65), "length=65, n_pairs=8"),
        (dict(n_keys=7), "n_pairs=8, n_keys=7, n_values=4096"),
        (dict(power=-0.1), r"power must be in \[0, 1\], got -0.1"),
        (dict(power=float("nan")), r"power must be in \[0, 1\], got nan"),
        (dict(held_out=1.0), r"held_out must be in \[0, 1\), got 1.0"),
        (dict(n_pairs=0), "n_pairs must be at least 1, got 0"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        MultiQueryAssociativeRecall(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [dict(length=64.0), dict(power="0.1"), dict(random_filler=1), dict(split_seed=0.5), dict(n_pairs=True)],
)
def test_settings_of_the_wrong_type_are_refused(wrong):
    with pytest.raises(TypeError):
        MultiQueryAssociativeRecall(**wrong)


def test_bad_arguments_are_refused():
    task = MultiQueryAssociativeRecall(**SMALL)
    docs = task.sample(2, 0)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        task.sample(0)
    with pytest.raises(ValueError, match="split must be one of train, test, got 'dev'"):
        task.sample(1, 0, "dev")
    with pytest.raises(ValueError, match="site must be one of key, .*, got 'divider'"):
        task.corrupt(docs, "divider")
    with pytest.raises(ValueError, match="procedure must be one of unambiguous, original, got 'same'"):
        task.corrupt(docs, "key", procedure="same")
    other = MultiQueryAssociativeRecall(**(SMALL | dict(length=14)))
    for call in (lambda: other.corrupt(docs, "key"), lambda: other.heuristics(docs)):
        with pytest.raises(ValueError, match="documents of this task have 16 tokens, got 14"):
            call()


def test_a_corruption_needs_a_token_to_spare():
    task = MultiQueryAssociativeRecall(n_keys=2, n_values=2, n_pairs=2, length=8)
    with pytest.raises(ValueError, match="no key is left to corrupt with: all 2 of them"):
        task.corrupt(task.sample(1, 0), "key")
