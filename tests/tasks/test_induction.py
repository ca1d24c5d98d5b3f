"""Induction is the task its definition says, document by document and in distribution."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import BOS, EOS, IGNORE, Documents, Induction

from .laws import assert_equally_likely


def check_document(task, docs, b):
    """Document b obeys the definition, read token by token."""
    tokens, labels = docs.tokens[b].tolist(), docs.labels[b].tolist()
    where = {name: int(pos[b]) for name, pos in docs.positions.items()}
    n, m = task.length, task.n_repeated
    assert len(tokens) == task.n_ctx == 2 + n + m
    assert (tokens[0], tokens[1 + n]) == (BOS, EOS)
    body, stretch = tokens[1 : 1 + n], tokens[2 + n :]
    assert set(body) <= set(range(3, task.d_vocab)) and len(set(body)) == n
    start = body.index(stretch[0])
    assert stretch == body[start : start + m]
    supervised = {p: label for p, label in enumerate(labels) if label != IGNORE}
    assert supervised == {p: tokens[p + 1] for p in range(2 + n, 1 + n + m)}
    assert docs.answer[b] == stretch[1] and docs.answer_pos[b] == 2 + n
    assert where == {
        "query_item_orig": 1 + start,
        "target_item_orig": 2 + start,
        "divider": 1 + n,
        "query_item": 2 + n,
        "target_item": 3 + n,
        "key": 1 + start,
        "value": 2 + start,
        "query": 2 + n,
    }


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n_repeated=st.integers(2, 10),
    spare=st.tuples(st.integers(0, 10), st.integers(0, 40)),
    seed=st.integers(0, 2**32),
    split=st.sampled_from(["train", "test"]),
)
def test_every_document_obeys_the_definition(n_repeated, spare, seed, split):
    length = n_repeated + spare[0]
    task = Induction(n_tokens=length + spare[1], length=length, n_repeated=n_repeated)
    docs = task.sample(5, seed, split)
    for b in range(5):
        check_document(task, docs, b)


def test_bodies_and_the_beginning_of_the_stretch_are_uniform():
    docs = Induction(n_tokens=5, length=4, n_repeated=2).sample(9000, 0)
    outcomes = [(*row[1:5], key) for row, key in zip(docs.tokens.tolist(), docs.positions["key"].tolist())]
    possible = [(*body, key) for body in itertools.permutations(range(3, 8), 4) for key in (1, 2, 3)]
    assert_equally_likely(outcomes, possible)


def test_all_of_the_body_may_be_repeated():
    """The published sequence: then every distance is the same, and so is the rule that copies from it."""
    task = Induction(n_tokens=100, length=8, n_repeated=8)
    docs = task.sample(50, 0)
    assert torch.equal(docs.tokens[:, 1:9], docs.tokens[:, 10:])
    scores = task.heuristics(docs)
    assert scores["first_candidate"].eq(1).all() and scores["uniform_candidates"].eq(1).all()


@pytest.mark.parametrize(
    "setting, split, tokens",
    [
        (
            dict(length=4, n_repeated=2),
            "train",
            [[1, 60, 14, 55, 11, 2, 60, 14], [1, 57, 90, 36, 51, 2, 90, 36]],
        ),
        (
            dict(length=4, n_repeated=2),
            "test",
            [[1, 90, 13, 86, 61, 2, 13, 86], [1, 67, 82, 40, 65, 2, 67, 82]],
        ),
        (
            dict(n_tokens=9, length=8, n_repeated=4),
            "train",
            [[1, 7, 6, 3, 8, 4, 11, 9, 10, 2, 6, 3, 8, 4], [1, 7, 8, 4, 6, 10, 9, 3, 11, 2, 6, 10, 9, 3]],
        ),
    ],
)
def test_golden_documents(setting, split, tokens):
    """Published numbers rest on the documents of a seed: these never change."""
    assert Induction(**(dict(n_tokens=90) | setting)).sample(2, 0, split).tokens.tolist() == tokens


@pytest.mark.parametrize("site", ["key", "value", "query"])
def test_an_unambiguous_corruption_is_new_to_the_document(site):
    task = Induction(n_tokens=8, length=5, n_repeated=3)
    docs = task.sample(1000, 0)
    where = docs.positions[site][:, None]
    new = task.corrupt(docs, site, 0).tokens.gather(1, where)
    assert not (docs.tokens == new).any()
    assert sorted(set(new.flatten().tolist())) == list(range(3, 11))


def test_an_original_corruption_is_any_token_but_the_old_one():
    task = Induction(n_tokens=6, length=4, n_repeated=2)
    docs = task.sample(3000, 0)
    where = docs.positions["key"][:, None]
    old, new = docs.tokens.gather(1, where), task.corrupt(docs, "key", 0, "original").tokens.gather(1, where)
    pairs = [(o, n) for o, n in zip(old.flatten().tolist(), new.flatten().tolist(), strict=True)]
    assert_equally_likely(pairs, list(itertools.permutations(range(3, 9), 2)))


def test_heuristics_score_their_rules_on_documents_worked_by_hand():
    # a body of four, two of which come again: the answer is the second, the third or the fourth of the body
    task = Induction(n_tokens=6, length=4, n_repeated=2)
    rows = [[1, 3, 4, 5, 6, 2, 3, 4], [1, 3, 4, 5, 6, 2, 4, 5], [1, 3, 4, 5, 6, 2, 5, 6]]
    tokens, key = torch.tensor(rows), torch.tensor([1, 2, 3])
    query = torch.full((3,), 6)
    positions = {"query_item": query, "key": key, "value": key + 1}
    docs = Documents(tokens, tokens[:, 7].clone(), query, torch.full_like(tokens, IGNORE), positions)
    scores = {name: score.tolist() for name, score in task.heuristics(docs).items()}
    assert scores == {
        "uniform_vocabulary": [pytest.approx(1 / 9)] * 3,
        "uniform_tokens": [1 / 4] * 3,
        "uniform_candidates": [pytest.approx(1 / 3)] * 3,
        "first_candidate": [1, 0, 0],
        "last_candidate": [0, 0, 1],
        "induction": [1, 1, 1],
        "reverse_induction": [0, 0, 0],
    }
    broken = tokens.clone()
    broken[:, 2] = 7  # of the three answers one is gone, and of the three cues another
    scores = task.heuristics(replace(docs, tokens=broken))
    assert scores["induction"].tolist() == [0, 0, 1]
    assert scores["uniform_candidates"].tolist() == [0, pytest.approx(1 / 3), pytest.approx(1 / 3)]


@pytest.mark.parametrize("rule", ["first_candidate", "last_candidate", "uniform_candidates"])
def test_no_fixed_distance_is_right_more_often_than_a_guess(rule):
    task = Induction()
    score = float(task.heuristics(task.sample(20_000, 0))[rule].mean())
    assert abs(score - 1 / 17) < 5 * (16 / 17**2 / 20_000) ** 0.5


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(length=15), "got length=15, n_repeated=16, n_tokens=4096"),
        (dict(n_tokens=31), "got length=32, n_repeated=16, n_tokens=31"),
        (dict(n_repeated=1), "n_repeated must be at least 2, got 1"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Induction(**wrong)


@pytest.mark.parametrize("wrong", [dict(length=32.0), dict(n_tokens="9"), dict(n_repeated=True)])
def test_settings_of_the_wrong_type_are_refused(wrong):
    with pytest.raises(TypeError):
        Induction(**wrong)


def test_bad_arguments_are_refused():
    task = Induction(n_tokens=9, length=4, n_repeated=2)
    docs = task.sample(2, 0)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        task.sample(0)
    with pytest.raises(ValueError, match="split must be one of train, test, got 'dev'"):
        task.sample(1, 0, "dev")
    with pytest.raises(ValueError, match="site must be one of key, .*, got 'target_item'"):
        task.corrupt(docs, "target_item")
    with pytest.raises(ValueError, match="procedure must be one of unambiguous, original, got 'same'"):
        task.corrupt(docs, "key", procedure="same")
    other = Induction(n_tokens=9, length=5, n_repeated=2)
    for call in (lambda: other.corrupt(docs, "key"), lambda: other.heuristics(docs)):
        with pytest.raises(ValueError, match="documents of this task have 9 tokens, got 8"):
            call()


def test_a_corruption_needs_a_token_to_spare():
    task = Induction(n_tokens=4, length=4, n_repeated=2)
    docs = task.sample(1, 0)
    with pytest.raises(ValueError, match="no token is left to corrupt with: all 4 of them"):
        task.corrupt(docs, "key")
    assert len(task.corrupt(docs, "key", procedure="original")) == 1
