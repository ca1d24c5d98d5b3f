"""Corruptions of tree documents leave no way to the answer, and heuristics score what their rules score."""

from dataclasses import replace

import pytest
import torch

from tasks import IGNORE, AssociativeRecall, AssociativeTreecall, TreeDocuments
from tasks.relations import RELATIONS
from tasks.tree_heuristics import FittedRules

from . import naive_treecall as naive

PADDED = ("tokens", "labels", "parent", "depth", "span")
TASKS = {
    "parent": AssociativeTreecall(grammar_seed=2, max_children=9, max_length=80),
    "child": AssociativeTreecall(grammar_seed=2, queries="child"),
    "sibling": AssociativeTreecall(grammar_seed=2, queries="sibling", self_siblings=True),
    "all": AssociativeTreecall(
        grammar_seed=2, queries="parent+child+sibling", rightmost=False, head="left", n_terminals=12
    ),
}


def ways(docs, b, words, relation, query):
    """The pairs of body positions that lead from the query's label to the answer's."""
    pairs = naive.pairs_of(
        words, RELATIONS[relation], rightmost=False, self_siblings=True, keep=lambda *_: True
    )
    labels = docs.tokens[b].tolist()
    return [
        (i + 1, j + 1) for i, j in pairs if labels[i + 1] == query and labels[j + 1] == int(docs.answer[b])
    ]


@pytest.mark.parametrize("site", AssociativeTreecall.sites)
@pytest.mark.parametrize("name", list(TASKS))
def test_an_unambiguous_corruption_leaves_no_way_and_changes_nothing_else(name, site):
    task = TASKS[name]
    docs = task.sample(200, 3)
    corrupted = task.corrupt(docs, site, 0)
    trees = naive.read_documents(docs)
    several = 0
    for b, (words, relation, key, value) in enumerate(trees):
        where = int(docs.positions[site][b])
        query = int(docs.tokens[b, docs.positions["query"][b]])
        before = ways(docs, b, words, relation, query)
        assert (key + 1, value + 1) in before
        changed = (corrupted.tokens[b] != docs.tokens[b]).nonzero().flatten().tolist()
        if site in ("query", "query_item"):
            assert changed == [where]
        else:
            end = 0 if site in ("key", "query_item_orig") else 1
            assert set(changed) == {way[end] for way in before}
        new = {int(corrupted.tokens[b, place]) for place in changed}
        assert len(new) == 1 and not new & {query, int(docs.answer[b])}
        assert 3 <= min(new) < 3 + task.n_terminals
        asked = int(corrupted.tokens[b, docs.positions["query"][b]])
        assert not ways(corrupted, b, words, relation, asked)
        several += len(changed) > 1
    if site in ("key", "value"):
        assert several < 100  # mostly it is one token
    for field in ("answer", "answer_pos", "labels", "parent", "depth", "span", "relation"):
        assert torch.equal(getattr(corrupted, field), getattr(docs, field))
    assert all(torch.equal(place, docs.positions[name]) for name, place in corrupted.positions.items())


def test_further_copies_of_the_key_that_lead_to_the_answer_are_replaced_too():
    task = TASKS["parent"]
    docs = task.sample(2000, 3)
    changed = (task.corrupt(docs, "key", 0).tokens != docs.tokens).sum(1)
    assert 0.02 < float((changed > 1).double().mean()) < 0.3


@pytest.mark.parametrize("site", ["key", "value", "query"])
def test_the_original_procedure_draws_any_other_terminal_and_changes_one_token(site):
    task = AssociativeTreecall(n_terminals=5, max_length=40)
    docs = task.sample(3000, 0)
    corrupted = task.corrupt(docs, site, 0, "original")
    where = docs.positions[site][:, None]
    expected = torch.zeros_like(docs.tokens, dtype=torch.bool).scatter(1, where, True)
    assert torch.equal(corrupted.tokens != docs.tokens, expected)
    old, new = docs.tokens.gather(1, where)[:, 0], corrupted.tokens.gather(1, where)[:, 0]
    for token in range(3, 8):
        counts = torch.bincount(new[old == token], minlength=8)
        assert counts.nonzero().flatten().tolist() == [t for t in range(3, 8) if t != token]


@pytest.mark.parametrize("procedure", ["unambiguous", "original"])
def test_the_same_seed_gives_the_same_corruption(procedure):
    task = AssociativeTreecall()
    docs = task.sample(50, 0)
    first, again, other = (task.corrupt(docs, "key", seed, procedure).tokens for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_golden_corruptions():
    """Published numbers rest on the corruptions of a seed: these never change."""
    docs = AssociativeTreecall().sample(3, 0)
    for procedure, tokens in (("unambiguous", [3, 16, 18]), ("original", [14, 17, 21])):
        new = AssociativeTreecall().corrupt(docs, "key", 0, procedure).tokens
        assert new.gather(1, docs.positions["key"][:, None]).flatten().tolist() == tokens


def test_where_every_terminal_leads_to_the_answer_the_rightmost_of_the_new_one_does_not():
    task = AssociativeTreecall.preset("pcfg_medium", grammar_seed=23)  # 90 words on average
    docs = task.sample(500, 0)
    corrupted = task.corrupt(docs, "query", 0)
    rest = 0
    for b, (words, relation, _, _) in enumerate(naive.read_documents(docs)):
        asked = int(corrupted.tokens[b, docs.positions["query"][b]])
        found = ways(docs, b, words, relation, asked)
        rest += bool(found)
        last = max((i + 1 for i, word in enumerate(words) if word.label + 3 == asked), default=0)
        assert last not in {query for query, _ in found}
        if found:
            every = {t for t in range(3, 23) if ways(docs, b, words, relation, t)}
            own = {int(docs.answer[b]), int(docs.tokens[b, docs.positions["query"][b]])}
            assert every | own == set(range(3, 23))
    assert 0 < rest < 50


def test_a_corruption_needs_a_terminal_to_spare():
    task = AssociativeTreecall(n_terminals=2, test_share=0.0)
    with pytest.raises(ValueError, match="no terminal is left to corrupt with: all 2 of them"):
        task.corrupt(task.sample(3, 0), "key", 0)


def test_bad_documents_and_arguments_are_refused():
    task = AssociativeTreecall(max_length=20)
    docs = task.sample(2, 0)
    with pytest.raises(ValueError, match=r"site must be one of key, .*query_item, got 'divider'"):
        task.corrupt(docs, "divider")
    with pytest.raises(ValueError, match="procedure must be one of unambiguous, original, got 'same'"):
        task.corrupt(docs, "key", procedure="same")
    with pytest.raises(TypeError, match="documents of this task are TreeDocuments, got Documents"):
        task.heuristics(AssociativeRecall(n_pairs=2).sample(2, 0))
    long = AssociativeTreecall(max_children=9).sample(200, 0)
    with pytest.raises(ValueError, match=r"at most 25 tokens, got \d{3}"):
        task.heuristics(long)


def documents(body, parent, key, value, others=()):
    """One document from the labels' token ids and the parents' positions."""
    n = len(body)
    tokens = torch.tensor([[1, *body, 2, body[key - 1], body[value - 1], 2, 0]])
    zeros = torch.zeros_like(tokens)
    depth = zeros.clone()
    depth[:, 1 : n + 1] = 1
    up = torch.full_like(tokens, -1)
    up[0, 1 : n + 1] = torch.tensor(parent)
    at = lambda place: torch.tensor([place])
    positions = {"key": at(key), "value": at(value), "divider": at(n + 1), "query": at(n + 2)}
    return TreeDocuments(
        tokens,
        tokens[:, n + 3].clone(),
        at(n + 2),
        torch.full_like(tokens, IGNORE),
        positions,
        parent=up,
        depth=depth,
        span=torch.stack((zeros, zeros), -1),
        relation=at(0),
    )


def test_heuristics_score_their_rules_on_documents_worked_by_hand():
    task = AssociativeTreecall(n_terminals=6)
    #                 1  2  3  4  5  6  7      tokens 3 .. 8
    docs = documents([3, 4, 5, 4, 6, 5, 7], [3, 3, 6, 5, 6, 7, -1], key=4, value=5)
    scores = {name: float(score) for name, score in task.heuristics(docs).items()}
    assert scores == {
        "uniform_vocabulary": pytest.approx(1 / 12),
        "uniform_tokens": pytest.approx(1 / 7),
        "uniform_distinct": pytest.approx(1 / 5),
        "first_token": 0,
        "last_token": 0,
        "most_frequent_first": 0,
        "most_frequent_last": 0,
        "next_token": 1,
        "second_next_token": 0,
        "previous_token": 0,
        "copy_query": 0,
    }
    docs = documents([3, 4, 5, 4, 6, 5, 7], [3, 3, 6, 5, 6, 7, -1], key=5, value=6)
    right = {name for name, score in task.heuristics(docs).items() if float(score) == 1}
    assert right == {"next_token", "most_frequent_last"}  # 4 and 5 occur twice; 5 last, 4 first
    assert float(task.heuristics(docs)["uniform_tokens"]) == pytest.approx(2 / 7)
    docs = documents([4, 3, 5, 4, 3, 5, 7], [3, 3, 7, 6, 6, 7, -1], key=6, value=7)
    right = {name for name, score in task.heuristics(docs).items() if float(score) == 1}
    assert right == {"next_token", "last_token"}
    docs = documents([4, 4, 5, 5, 4], [2, 5, 5, 5, -1], key=3, value=5)
    right = {name for name, score in task.heuristics(docs).items() if float(score) == 1}
    commonest = {"most_frequent_first", "most_frequent_last"}
    assert right == {"first_token", "last_token", "second_next_token", "previous_token"} | commonest


def test_heuristics_read_corrupted_documents_as_they_are():
    task = AssociativeTreecall(n_terminals=6)
    clean = documents([3, 4, 5, 4, 6, 5, 7], [3, 3, 6, 5, 6, 7, -1], key=4, value=5)
    tokens = clean.tokens.clone()
    tokens[0, 5] = 8
    scores = task.heuristics(replace(clean, tokens=tokens))
    assert float(scores["next_token"]) == 0 and float(scores["uniform_tokens"]) == 0


def test_heuristics_do_not_depend_on_the_padding():
    task = AssociativeTreecall()
    docs = task.sample(300, 0)
    for b in range(0, 300, 50):
        one = docs[b : b + 1]
        stop = int(one.answer_pos[0]) + 3
        cut = replace(
            one,
            **{name: getattr(one, name)[:, :stop] for name in PADDED},
        )
        whole = task.heuristics(docs)
        for name, score in task.heuristics(cut).items():
            assert float(score) == float(whole[name][b])


def test_fitted_rules_answer_with_what_was_most_frequent():
    docs = [
        documents([3, 4, 5], [3, 3, -1], key=1, value=3),  # query 3, last 5: answer 5
        documents([3, 4, 6], [3, 3, -1], key=1, value=3),  # query 3, last 6: answer 6
        documents([3, 5, 6], [3, 3, -1], key=1, value=3),
        documents([4, 5, 6], [2, 3, -1], key=1, value=2),  # query 4, last 6: answer 5
    ]
    train = stack(docs)
    rules = FittedRules(train)
    scores = {name: score.tolist() for name, score in rules(train).items()}
    assert scores["usual_answer"] == [1, 0, 0, 1]  # 5 and 6 twice each: the smaller
    assert scores["usual_answer_to_query"] == [0, 1, 1, 1]
    assert scores["usual_answer_to_query_and_last_token"] == [1, 1, 1, 1]
    new = documents([7, 5, 6], [3, 3, -1], key=1, value=3)
    assert {float(score) for name, score in rules(new).items() if "query" in name} == {0}


def stack(docs):
    fields = ("tokens", "answer", "answer_pos", "labels", "parent", "depth", "span", "relation")
    joined = {name: torch.cat([getattr(one, name) for one in docs]) for name in fields}
    positions = {name: torch.cat([one.positions[name] for one in docs]) for name in docs[0].positions}
    return TreeDocuments(**joined, positions=positions)
