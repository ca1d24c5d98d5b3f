"""The law of documents is exactly that of the definition, enumerated naively on a small grammar."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.bodies import is_test_body
from tasks.grammar import Grammar, Rule
from tasks.held_out import is_held_out
from tasks.relations import RELATIONS, Eligible
from tasks.tree_documents import as_documents
from tasks.tree_law import TreeLaw
from tasks.trees import Trees

from . import naive_treecall as naive
from .laws import assert_law

N0, N1, N2, N3 = range(2, 6)
GRAMMAR = Grammar(
    levels=(1, 2, 3, 3),
    rules=(
        (Rule(0.5, (N1, 0)), Rule(0.25, (1, N2, N3)), Rule(0.25, (0,))),
        (Rule(0.75, (N3, 1)), Rule(0.25, (1, 1, 0))),
        (Rule(0.375, (0,)), Rule(0.625, (1, 0))),
        (Rule(1.0, (1,)),),
    ),
    heads=np.array([[0.25, 0.75], [0.5, 0.5], [0.875, 0.125], [0.375, 0.625]]),
)


def law(**changes):
    settings = dict(
        head="right",
        relations=("parent",),
        first="target",
        rightmost=True,
        self_siblings=False,
        held_out=0.0,
        test_share=0.0,
        max_length=100,
    )
    settings |= changes
    rules = {name: settings.pop(name) for name in ("rightmost", "self_siblings", "held_out")}
    return TreeLaw(grammar=GRAMMAR, eligible=Eligible(**rules, split_seed=SEED), **settings)


SEED = 9  # holds out 2 of the 4 pairs of labels at 0.4


def assert_follows(got, law_of_all):
    """As `assert_law`, with the rarest outcomes pooled until all are expected more than 6 times."""
    assert set(got) <= set(law_of_all)
    pooled, rest = set(), 0.0
    for outcome, p in sorted(law_of_all.items(), key=lambda item: item[1]):
        if p * len(got) > 6 and not 0 < rest * len(got) <= 6:
            break
        pooled.add(outcome)
        rest += p
    law_of_some = {outcome: p for outcome, p in law_of_all.items() if outcome not in pooled}
    assert len(law_of_some) > 3
    if pooled:
        law_of_some["the rest"] = rest
    assert_law(["the rest" if outcome in pooled else outcome for outcome in got], law_of_some)


def held(target, query):
    return bool(is_held_out(torch.tensor(target), torch.tensor(query), 0.4, SEED))


def test_two_of_the_four_pairs_are_held_out():
    assert sum(held(a, b) for a in (0, 1) for b in (0, 1)) == 2


@pytest.mark.parametrize(
    "changes, split",
    [
        (dict(), "train"),
        (dict(head="left"), "train"),
        (dict(first="query"), "train"),
        (dict(rightmost=False), "train"),
        (dict(relations=("child",), first="query", rightmost=False), "train"),
        (dict(relations=("child",), head="left"), "train"),
        (dict(relations=("sibling",), self_siblings=True), "train"),
        (dict(relations=("sibling",), rightmost=False), "train"),
        (dict(relations=("sibling",), rightmost=False, head="left", first="query"), "train"),
        (dict(relations=RELATIONS, self_siblings=True), "train"),
        (dict(relations=("sibling", "parent"), head="left", rightmost=False), "train"),
        (dict(max_length=4), "train"),
        (dict(held_out=0.4, rightmost=False), "train"),
        (dict(held_out=0.4, rightmost=False), "test"),
        (dict(test_share=0.4), "train"),
        (dict(test_share=0.4), "test"),
    ],
    ids=str,
)
def test_documents_follow_the_law_of_the_definition(changes, split):
    of_tree = law(**changes)

    def is_mine(words):
        if not of_tree.test_share:
            return True
        labels = np.array([word.label for word in words])
        body = Trees(np.array([len(labels)]), labels, *[np.zeros_like(labels)] * 4)
        return bool(is_test_body(body, of_tree.test_share, SEED)[0]) == (split == "test")

    expected = naive.law_of(
        GRAMMAR,
        side=of_tree.head,
        relations=of_tree.relations,
        first=of_tree.first,
        max_length=of_tree.max_length,
        is_mine=is_mine,
        rightmost=of_tree.eligible.rightmost,
        self_siblings=of_tree.eligible.self_siblings,
        keep=lambda *pair: not of_tree.eligible.held_out or held(*pair) == (split == "test"),
    )
    trees, questions, tally = of_tree.sample(8000, torch.Generator().manual_seed(0), split)
    assert tally.kept >= 8000
    docs = as_documents(trees, questions, None)
    read = naive.read_documents(docs)
    got = [(words, RELATIONS[relation], query, target) for words, relation, query, target in read]
    assert_follows(got, expected)


def test_every_sentence_drawn_is_counted_once_for_its_reason():
    of_tree = law(max_length=6, test_share=0.4, relations=("sibling",), rightmost=False, held_out=0.4)
    tally = of_tree.tally(40_000, torch.Generator().manual_seed(0), "test")
    counts = (tally.kept, tally.too_short, tally.too_long, tally.other_split, tally.without_pair)
    assert tally.drawn == 40_000 == sum(counts) and min(counts) > 100
    sentences = [
        (p / GRAMMAR.n_nonterminals, len(naive.words_of(tree, "right")))
        for x in range(GRAMMAR.n_nonterminals)
        for p, tree in naive.expansions(GRAMMAR, x)
    ]
    shares = tally.shares()
    for reason, too in (("too_short", lambda n: n < 3), ("too_long", lambda n: n > 6)):
        expected = sum(p for p, n in sentences if too(n))
        assert abs(shares[reason] - expected) < 5 * (expected * (1 - expected) / 40_000) ** 0.5


def test_lengths_of_a_grammar_are_those_of_its_sentences():
    lengths = [
        (p, len(naive.words_of(tree, "left"))) for x in range(4) for p, tree in naive.expansions(GRAMMAR, x)
    ]
    assert GRAMMAR.shortest == min(n for _, n in lengths) == 2
    assert GRAMMAR.longest == max(n for _, n in lengths)
    assert GRAMMAR.mean_length == pytest.approx(sum(p * n for p, n in lengths) / 4, rel=1e-12)


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(max_length=5), "{kept} among {drawn} .* more than max_length=5.*Try to raise max_length"),
        (dict(max_length=100, held_out=1e-9), "Try to change held_out=1e-09"),
    ],
    ids=str,
)
def test_a_search_for_what_all_but_never_occurs_ends_in_an_error(changes, said):
    long, rare = Rule(1 - 2**-14, (0,) * 20), Rule(2**-14, (0, 1))
    grammar = replace(GRAMMAR, levels=(1,), rules=((long, rare),), heads=np.array([[0.5, 0.5]]))
    of_tree = replace(law(**changes), grammar=grammar)
    said = said.replace("{kept}", r"\d+").replace("{drawn}", r"\d{5}")
    with pytest.raises(ValueError, match=f"gave up looking for documents of the test split: .*{said}"):
        of_tree.sample(1000, torch.Generator().manual_seed(0), "test")


def test_sentences_may_be_drawn_one_by_one_also_where_none_is_kept():
    of_tree = law(relations=RELATIONS, max_length=4, test_share=0.4, held_out=0.4)
    generator, kept = torch.Generator().manual_seed(0), []
    for _ in range(60):
        trees, questions, tally = of_tree.draw(1, generator, "train")
        assert len(trees) == len(questions) == tally.kept and tally.drawn == 1
        kept.append(tally.kept)
    assert set(kept) == {0, 1}
