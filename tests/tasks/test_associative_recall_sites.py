"""Corruptions change the one token they say, and heuristics score what their rule scores."""

from dataclasses import replace

import pytest
import torch

from tasks import IGNORE, AssociativeRecall, Documents

SITES = ["key", "query_item_orig", "value", "target_item_orig", "query", "query_item"]


def kind_of(task, tokens):
    return ["special" if t < 3 else "key" if t < task.first_value else "value" for t in tokens.tolist()]


@pytest.mark.parametrize("procedure", ["unambiguous", "original"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("query", ["key", "value"])
def test_a_corruption_changes_one_token_and_nothing_else(query, site, procedure):
    task = AssociativeRecall(n_keys=20, n_values=20, n_pairs=6, n_queries=2, query=query)
    docs = task.sample(500, 0)
    before = docs.tokens.clone()
    corrupted = task.corrupt(docs, site, 0, procedure)

    changed = corrupted.tokens != docs.tokens
    expected = torch.zeros_like(changed)
    expected[torch.arange(500), docs.positions[site]] = True
    assert torch.equal(changed, expected)
    assert torch.equal(docs.tokens, before)
    for name in ("answer", "answer_pos", "labels"):
        assert torch.equal(getattr(corrupted, name), getattr(docs, name))
    assert all(torch.equal(pos, docs.positions[name]) for name, pos in corrupted.positions.items())


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("query", ["key", "value"])
def test_an_unambiguous_corruption_is_of_the_same_kind_and_new_to_the_document(query, site):
    task = AssociativeRecall(n_keys=10, n_values=12, n_pairs=8, query=query)
    docs = task.sample(1000, 0)
    corrupted = task.corrupt(docs, site, 0)
    where = docs.positions[site][:, None]
    old, new = docs.tokens.gather(1, where), corrupted.tokens.gather(1, where)
    assert kind_of(task, old.flatten()) == kind_of(task, new.flatten())
    assert not (docs.tokens == new).any()
    body, asked = corrupted.tokens[:, 1:17], corrupted.tokens[:, 18:19]
    if site in ("value", "target_item_orig"):
        assert not (body == docs.answer[:, None]).any()
    else:
        assert not (body == asked).any()
    assert len(new.unique()) == (12 if kind_of(task, new[0]) == ["value"] else 10)


@pytest.mark.parametrize(
    "query, site, possible",
    [
        ("key", "key", range(3, 9)),  # any key but the old one
        ("key", "value", range(3, 8)),  # a key, never the last
        ("value", "key", range(9, 14)),  # any value but the old one
        ("value", "value", range(10, 14)),  # a value, never the first
    ],
)
def test_the_original_procedure_draws_from_the_kind_of_the_query(query, site, possible):
    task = AssociativeRecall(n_keys=6, n_values=5, n_pairs=4, query=query)
    docs = task.sample(3000, 0)
    where = docs.positions[site][:, None]
    new = task.corrupt(docs, site, 0, "original").tokens.gather(1, where)
    assert sorted(set(new.flatten().tolist())) == list(possible)
    if query == "key":
        assert bool((docs.tokens[:, 1:9] == new).any())  # it may repeat another token of the body


def test_the_same_seed_gives_the_same_corruption():
    task = AssociativeRecall(n_pairs=4)
    docs = task.sample(50, 0)
    first, again, other = (task.corrupt(docs, "key", seed).tokens for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, task.corrupt(docs, "key").tokens)


@pytest.mark.parametrize("procedure, keys", [("unambiguous", (4, 44)), ("original", (6, 38))])
def test_golden_corruptions(procedure, keys):
    """Published numbers rest on the corruptions of a seed: these never change."""
    task = AssociativeRecall(n_keys=64, n_values=64, n_pairs=3)
    docs = task.sample(2, 0)
    new = task.corrupt(docs, "key", 0, procedure).tokens.gather(1, docs.positions["key"][:, None])
    assert tuple(new.flatten().tolist()) == keys


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("procedure", ["unambiguous", "original"])
def test_documents_on_a_gpu_are_corrupted_and_scored_as_on_the_cpu(procedure):
    task = AssociativeRecall(n_keys=20, n_values=20, n_pairs=6)
    docs = task.sample(50, 0)
    there = task.corrupt(docs.to("cuda"), "key", 0, procedure)
    assert torch.equal(there.tokens.cpu(), task.corrupt(docs, "key", 0, procedure).tokens)
    scores = task.heuristics(docs)
    assert all(
        torch.equal(score.cpu(), scores[name]) for name, score in task.heuristics(docs.to("cuda")).items()
    )


def test_a_corruption_needs_a_token_to_spare():
    docs = AssociativeRecall(n_keys=4, n_values=9, n_pairs=4).sample(3, 0)
    task = AssociativeRecall(n_keys=4, n_values=9, n_pairs=4)
    with pytest.raises(ValueError, match="no key is left to corrupt with: all 4 of them"):
        task.corrupt(docs, "key", 0)
    assert len(task.corrupt(docs, "value", 0)) == 3


def test_bad_corruption_arguments_are_refused():
    task = AssociativeRecall(n_pairs=4)
    docs = task.sample(2, 0)
    with pytest.raises(ValueError, match=r"site must be one of key, .*query_item, got 'divider'"):
        task.corrupt(docs, "divider")
    with pytest.raises(ValueError, match="procedure must be one of unambiguous, original, got 'same'"):
        task.corrupt(docs, "key", procedure="same")
    with pytest.raises(ValueError, match="documents of this task have 15 tokens, got 13"):
        AssociativeRecall(n_pairs=5).corrupt(docs, "key")


def documents(task, rows):
    """Documents as given, token by token, of a task of one query."""
    tokens = torch.tensor(rows)
    cue = torch.tensor([row.index(row[-3], 1) for row in rows])
    step = 1 if task.query == "key" else -1
    query = torch.full((len(rows),), len(rows[0]) - 3)
    positions = {"query_item_orig": cue, "target_item_orig": cue + step, "query_item": query}
    return Documents(tokens, tokens[:, -2].clone(), query, torch.full_like(tokens, IGNORE), positions)


def test_heuristics_score_their_rules_on_documents_worked_by_hand():
    # keys 3 4 5 6, values 7 8 9 10
    task = AssociativeRecall(n_keys=4, n_values=4, n_pairs=3)
    docs = documents(
        task,
        [
            [1, 3, 7, 4, 8, 5, 9, 2, 3, 7, 2],  # the first pair is asked
            [1, 3, 7, 4, 8, 5, 9, 2, 5, 9, 2],  # the last
            [1, 3, 7, 4, 8, 5, 9, 2, 4, 8, 2],  # the middle one
        ],
    )
    scores = {name: score.tolist() for name, score in task.heuristics(docs).items()}
    assert scores == {
        "uniform_vocabulary": [pytest.approx(1 / 11)] * 3,
        "uniform_tokens": [pytest.approx(1 / 6)] * 3,
        "uniform_candidates": [pytest.approx(1 / 3)] * 3,
        "first_candidate": [1, 0, 0],
        "last_candidate": [0, 1, 0],
        "induction": [1, 1, 1],
        "reverse_induction": [0, 0, 0],
    }


def test_heuristics_of_the_reversed_query_look_for_keys():
    task = AssociativeRecall(n_keys=4, n_values=4, n_pairs=3, query="value")
    docs = documents(task, [[1, 3, 7, 4, 8, 5, 9, 2, 7, 3, 2], [1, 3, 7, 4, 8, 5, 9, 2, 9, 5, 2]])
    scores = {name: score.tolist() for name, score in task.heuristics(docs).items()}
    assert scores["first_candidate"] == [1, 0] and scores["last_candidate"] == [0, 1]
    assert scores["uniform_candidates"] == [pytest.approx(1 / 3)] * 2
    assert scores["reverse_induction"] == [1, 1] and scores["induction"] == [0, 0]


def test_heuristics_read_corrupted_documents_as_they_are():
    task = AssociativeRecall(n_keys=4, n_values=4, n_pairs=3)
    clean = documents(task, [[1, 3, 7, 4, 8, 5, 9, 2, 4, 8, 2]] * 3)
    tokens = clean.tokens.clone()
    tokens[0, 3] = 6  # the key is gone: no match
    tokens[1, 4] = 5  # the value is gone, a key in its place: two values are left, none right
    tokens[2, 5] = 4  # the key comes again: the last occurrence is followed
    docs = replace(clean, tokens=tokens)
    scores = {name: score.tolist() for name, score in task.heuristics(docs).items()}
    assert scores["induction"] == [0, 0, 0]
    assert scores["uniform_candidates"] == [pytest.approx(1 / 3), 0, pytest.approx(1 / 3)]
    assert scores["uniform_tokens"] == [pytest.approx(1 / 6), 0, pytest.approx(1 / 6)]


def test_a_rule_whose_cue_is_missing_never_answers():
    task = AssociativeRecall(n_keys=4, n_values=4, n_pairs=3, query="value")
    clean = documents(task, [[1, 3, 7, 4, 8, 5, 9, 2, 7, 3, 2]])
    tokens = clean.tokens.clone()
    tokens[0, 2] = 10  # the queried value is gone; the answer is still the first token of the body
    scores = task.heuristics(replace(clean, tokens=tokens))
    assert scores["induction"] == 0 and scores["reverse_induction"] == 0 and scores["first_candidate"] == 1


@pytest.mark.parametrize("query", ["key", "value"])
def test_expected_accuracies_are_the_published_ones(query):
    """6.25 % for a value of the document, 3.1 % for a token of it, 100 % for the rule, 0.012 % for chance."""
    task = AssociativeRecall(query=query)
    means = {name: float(score.mean()) for name, score in task.heuristics(task.sample(20_000, 0)).items()}
    rule, other = ("induction", "reverse_induction")[:: 1 if query == "key" else -1]
    assert means[rule] == 1 and means[other] == 0
    assert means["uniform_candidates"] == pytest.approx(1 / 16)
    assert means["uniform_tokens"] == pytest.approx(1 / 32)
    assert means["uniform_vocabulary"] == pytest.approx(0.00012, rel=0.02)
    for name in ("first_candidate", "last_candidate"):
        assert abs(means[name] - 1 / 16) < 5 * (15 / 256 / 20_000) ** 0.5
