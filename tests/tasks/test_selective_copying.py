"""Selective copying is the task its definition says, document by document and in distribution."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import BOS, EOS, IGNORE, Documents, SelectiveCopying

from .laws import assert_equally_likely, assert_law

NOISE, MARKER = 3, 4


def check_document(task, docs, b):
    """Document b obeys the definition, read token by token."""
    tokens, labels = docs.tokens[b].tolist(), docs.labels[b].tolist()
    where = {name: int(pos[b]) for name, pos in docs.positions.items()}
    n, m = task.length, task.n_copied
    assert len(tokens) == task.n_ctx == 2 + n + m
    assert (tokens[0], tokens[1 + n]) == (BOS, EOS)
    assert tokens[2 + n :] == [MARKER] * m
    places = [p for p in range(1, 1 + n) if tokens[p] != NOISE]
    copied = [tokens[p] for p in places]
    assert len(copied) == m and set(copied) <= set(range(5, 5 + task.n_tokens))
    assert labels == [IGNORE] * (2 + n) + copied
    rank = where["query_item"] - (2 + n)
    assert 0 <= rank < m
    assert docs.answer[b] == copied[rank] and docs.answer_pos[b] == where["query_item"]
    assert where == {
        "query_item_orig": places[rank],
        "target_item_orig": places[rank],
        "divider": 1 + n,
        "query_item": 2 + n + rank,
        "key": places[rank],
        "value": places[rank],
        "query": 2 + n + rank,
    }


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n_tokens=st.integers(2, 20),
    n_copied=st.integers(1, 12),
    spare=st.integers(0, 30),
    seed=st.integers(0, 2**32),
    split=st.sampled_from(["train", "test"]),
)
def test_every_document_obeys_the_definition(n_tokens, n_copied, spare, seed, split):
    task = SelectiveCopying(n_tokens=n_tokens, n_copied=n_copied, length=n_copied + spare)
    docs = task.sample(5, seed, split)
    for b in range(5):
        check_document(task, docs, b)


def test_the_defaults_are_the_published_setting():
    """A body of 4096, 16 of them to copy, a vocabulary of 16 with noise and marker; and our BOS, EOS, PAD."""
    task = SelectiveCopying()
    assert (task.n_ctx, task.d_vocab) == (4096 + 16 + 2, 16 + 3)
    docs = task.sample(20, 0)
    for b in range(20):
        check_document(task, docs, b)


def test_places_tokens_and_the_one_that_is_asked_for_are_uniform():
    task = SelectiveCopying(n_tokens=2, n_copied=2, length=5)
    docs = task.sample(20_000, 0)
    rows, ranks = docs.tokens[:, 1:6].tolist(), (docs.positions["query"] - 7).tolist()
    possible = []
    for first, second in itertools.combinations(range(5), 2):
        for x1, x2, rank in itertools.product((5, 6), (5, 6), (0, 1)):
            body = [NOISE] * 5
            body[first], body[second] = x1, x2
            possible.append((*body, rank))
    assert_equally_likely([(*row, rank) for row, rank in zip(rows, ranks)], possible)


@pytest.mark.parametrize(
    "setting, split, tokens",
    [
        (
            dict(n_copied=3, length=8),
            "train",
            [[1, 3, 11, 8, 3, 3, 15, 3, 3, 2, 4, 4, 4, 12], [1, 12, 3, 3, 3, 3, 3, 16, 14, 2, 4, 4, 4, 10]],
        ),
        (
            dict(n_copied=3, length=8),
            "test",
            [[1, 3, 8, 11, 3, 18, 3, 3, 3, 2, 4, 4, 4, 11], [1, 3, 11, 3, 18, 3, 3, 14, 3, 2, 4, 4, 4, 12]],
        ),
        (
            dict(n_copied=2, length=20),
            "train",
            [
                [1, 3, 18, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 10, 3, 3, 2, 4, 4, 23],
                [1, 3, 3, 8, 3, 3, 3, 3, 3, 12, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2, 4, 4, 23],
            ],
        ),
    ],
)
def test_golden_documents(setting, split, tokens):
    """Published numbers rest on the documents of a seed: these never change."""
    docs = SelectiveCopying(**setting).sample(2, 0, split)
    assert [[*row, at] for row, at in zip(docs.tokens.tolist(), docs.answer_pos.tolist())] == tokens


@pytest.mark.parametrize("procedure", ["unambiguous", "original"])
def test_a_corruption_is_any_other_token_to_be_copied(procedure):
    task = SelectiveCopying(n_tokens=4, n_copied=5, length=5)
    docs = task.sample(3000, 0)
    corrupted = task.corrupt(docs, "value", 0, procedure)
    where = docs.positions["value"][:, None]
    old, new = docs.tokens.gather(1, where).flatten(), corrupted.tokens.gather(1, where).flatten()
    assert_equally_likely(
        list(zip(old.tolist(), new.tolist(), strict=True)), list(itertools.permutations(range(5, 9), 2))
    )
    assert int((corrupted.tokens != docs.tokens).sum()) == 3000


def test_markers_cannot_be_corrupted():
    task = SelectiveCopying(n_tokens=4, n_copied=2, length=5)
    with pytest.raises(ValueError, match="site must be one of key, query_item_orig, value, .*, got 'query'"):
        task.corrupt(task.sample(2, 0), "query")


def documents(task, rows, ranks):
    tokens, rank = torch.tensor(rows), torch.tensor(ranks)
    copied = [[token for token in row[1 : 1 + task.length] if token > MARKER] for row in rows]
    answer = torch.tensor([tokens[r] for tokens, r in zip(copied, ranks, strict=True)])
    query = 2 + task.length + rank
    return Documents(tokens, answer, query, torch.full_like(tokens, IGNORE), {"query_item": query})


def test_heuristics_score_their_rules_on_documents_worked_by_hand():
    # three of five places; the first, the third and the fifth place are the likeliest of the three tokens
    task = SelectiveCopying(n_tokens=4, n_copied=3, length=5)
    docs = documents(
        task,
        [
            [1, 5, 3, 6, 3, 5, 2, 4, 4, 4],
            [1, 3, 5, 6, 7, 3, 2, 4, 4, 4],
            [1, 3, 3, 5, 6, 6, 2, 4, 4, 4],
        ],
        [0, 1, 2],
    )
    scores = {name: score.tolist() for name, score in task.heuristics(docs).items()}
    third = pytest.approx(1 / 3)
    assert scores == {
        "uniform_vocabulary": [pytest.approx(1 / 9)] * 3,
        "uniform_tokens": [pytest.approx(0.4), pytest.approx(0.2), pytest.approx(0.4)],
        "uniform_candidates": [pytest.approx(2 / 3), third, pytest.approx(2 / 3)],
        "first_candidate": [1, 0, 0],
        "last_candidate": [1, 0, 1],
        "most_frequent": [1, third, 1],
        "likeliest_place": [1, 1, 1],
        "in_order": [1, 1, 1],
    }
    broken = docs.tokens.clone()
    broken[:, 3] = NOISE  # a token is gone: later ones move up
    scores = task.heuristics(replace(docs, tokens=broken))
    assert scores["in_order"].tolist() == [1, 0, 0]
    assert scores["likeliest_place"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("length, n_copied", [(9, 1), (9, 2), (9, 4), (10, 7), (6, 6)])
def test_the_likeliest_place_is_the_mode_of_where_a_token_is(length, n_copied):
    task = SelectiveCopying(n_tokens=2, n_copied=n_copied, length=length)
    total = math.comb(length, n_copied)
    docs = task.sample(4000, 0)
    for j in range(1, n_copied + 1):
        law = {
            x: math.comb(x - 1, j - 1) * math.comb(length - x, n_copied - j) / total
            for x in range(1, length + 1)
        }
        best = max(law.values())
        mode = next(x for x, p in law.items() if p == best)
        assert task._likeliest_place(torch.tensor([j - 1])).tolist() == [mode]
        own = docs.positions["query"] == 1 + length + j
        if 5 < 4000 / n_copied * min(p for p in law.values() if p):
            assert_law(docs.positions["value"][own].tolist(), law)


def test_a_rule_without_a_candidate_never_answers():
    task = SelectiveCopying(n_tokens=4, n_copied=1, length=2)
    docs = documents(task, [[1, 5, 3, 2, 4]], [0])
    scores = task.heuristics(replace(docs, tokens=torch.tensor([[1, 3, 3, 2, 4]])))
    for rule in ("uniform_candidates", "first_candidate", "last_candidate", "in_order"):
        assert scores[rule] == 0


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(n_copied=20, length=19), "got n_copied=20, length=19"),
        (dict(n_tokens=1), "n_tokens must be at least 2, got 1"),
        (dict(n_copied=0), "n_copied must be at least 1, got 0"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        SelectiveCopying(**wrong)


@pytest.mark.parametrize("wrong", [dict(length=32.0), dict(n_tokens="9"), dict(n_copied=True)])
def test_settings_of_the_wrong_type_are_refused(wrong):
    with pytest.raises(TypeError):
        SelectiveCopying(**wrong)


def test_bad_arguments_are_refused():
    task = SelectiveCopying(n_copied=2, length=5)
    docs = task.sample(2, 0)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        task.sample(0)
    with pytest.raises(ValueError, match="split must be one of train, test, got 'dev'"):
        task.sample(1, 0, "dev")
    with pytest.raises(ValueError, match="procedure must be one of unambiguous, original, got 'same'"):
        task.corrupt(docs, "key", procedure="same")
    other = SelectiveCopying(n_copied=2, length=6)
    for call in (lambda: other.corrupt(docs, "key"), lambda: other.heuristics(docs)):
        with pytest.raises(ValueError, match="documents of this task have 10 tokens, got 9"):
            call()
