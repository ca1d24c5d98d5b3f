"""Treecall documents obey the definition, word by word, at all settings; seeds and settings are stable."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from tasks import BOS, EOS, IGNORE, PAD, AssociativeTreecall, Task
from tasks.relations import RELATIONS
from tasks.treecall import PUBLISHED

from . import naive_treecall as naive

SETTINGS = [
    dict(),
    dict(head="left"),
    dict(max_children=9, max_length=100),
    dict(n_terminals=8192, terminal_factor=20.0),
    dict(queries="parent+child+sibling", rightmost=False),
    dict(queries="sibling", self_siblings=True, head="left"),
    dict(first="query", held_out=0.2),
]


def derives(grammar, words, children, at):
    """The nonterminals whose rules give the constituent that word `at` heads."""
    below = [
        {words[child].label} if words[child].stop - words[child].start == 1 else None
        for child in children[at]
    ]
    inner = [
        derives(grammar, words, children, child) if options is None else None
        for child, options in zip(children[at], below, strict=True)
    ]
    found = set()
    for x, rules in enumerate(grammar.rules):
        for rule in rules:
            if len(rule.symbols) == len(children[at]) and all(
                symbol in leaf if leaf is not None else symbol - grammar.n_terminals in constituents
                for symbol, leaf, constituents in zip(rule.symbols, below, inner, strict=True)
            ):
                found.add(x)
    return found


def check_tree(task, words):
    """The words are a sentence of the grammar, with that tree."""
    n = len(words)
    assert 3 <= n <= task.max_length
    roots = [i for i, word in enumerate(words) if word.parent < 0]
    assert roots == [n - 1 if task.head == "right" else 0]
    assert (words[roots[0]].start, words[roots[0]].stop, words[roots[0]].depth) == (0, n, 1)
    children = {i: [j for j, word in enumerate(words) if word.parent == i] for i in range(n)}
    for i, word in enumerate(words):
        if not children[i]:
            assert (word.start, word.stop) == (i, i + 1) and word.depth == words[word.parent].depth
            continue
        assert len(children[i]) <= task.max_children
        edges = [(words[child].start, words[child].stop) for child in children[i]]
        own = (i, i + 1)
        pieces = [*edges, own] if task.head == "right" else [own, *edges]
        assert pieces[0][0] == word.start and pieces[-1][1] == word.stop
        assert all(one[1] == other[0] for one, other in pairwise(pieces))
        assert word.depth == (words[word.parent].depth + 1 if word.parent >= 0 else 1)
    assert max(word.depth for word in words) <= task.max_depth
    assert derives(task.grammar, words, children, roots[0])


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_document_obeys_the_definition(setting, split):
    task = AssociativeTreecall(**setting, grammar_seed=4)
    docs = task.sample(150, 1, split)
    extra = 1 if len(task.relations) > 1 else 0
    rows = naive.read_documents(docs)
    for b, (words, relation, query, target) in enumerate(rows):
        check_tree(task, words)
        assert all(0 <= word.label < task.n_terminals for word in words)
        name, n = RELATIONS[relation], len(words)
        assert name in task.relations
        pairs = naive.pairs_of(
            words,
            name,
            rightmost=task.rightmost,
            self_siblings=task.self_siblings,
            keep=lambda *_: True,
        )
        assert (query, target) in pairs
        asked = [words[query].label + 3, *([3 + task.n_terminals + relation] if extra else [])]
        body, answer = [word.label + 3 for word in words], words[target].label + 3
        whole = [BOS, *body, EOS, *asked, answer, EOS]
        width = docs.tokens.shape[1]
        assert docs.tokens[b].tolist() == whole + [PAD] * (width - len(whole))
        assert docs.answer[b] == answer and docs.answer_pos[b] == n + 2 + extra
        labels = docs.labels[b].tolist()
        assert labels.pop(n + 2 + extra) == answer and set(labels) == {IGNORE}
        expected = {"key": query + 1, "value": target + 1, "query": n + 2, "divider": n + 1}
        expected |= {"query_item_orig": query + 1, "target_item_orig": target + 1, "query_item": n + 2}
        expected |= {"target_item": n + 3 + extra}
        expected |= {"query_type": n + 3} if extra else {}
        assert {key: int(where[b]) for key, where in docs.positions.items()} == expected
        assert (docs.parent[b, n + 1 :] == -1).all() and (docs.depth[b, n + 1 :] == 0).all()
        assert docs.length[b] == n and docs.distance[b] == target - query
        assert docs.query_depth[b] == words[query].depth
        assert docs.tree_depth[b] == max(word.depth for word in words)
        valid = {
            j + 1
            for i, j in naive.pairs_of(words, name, rightmost=False, self_siblings=True, keep=lambda *_: True)
            if i == query
        }
        assert set(docs.targets[b].nonzero().flatten().tolist()) == valid
    assert docs.tokens.shape[1] <= task.n_ctx == task.max_length + 5 + extra
    assert int(docs.tokens.max()) < task.d_vocab == 6 + task.n_terminals


def test_published_settings_have_the_published_vocabularies():
    assert AssociativeTreecall.preset("pcfg_easy") == AssociativeTreecall()
    assert AssociativeTreecall.preset("pcfg_easy").d_vocab == 26
    assert AssociativeTreecall.preset("pcfg_easy_8192", grammar_seed=2).d_vocab == 8198
    assert AssociativeTreecall.preset("pcfg_medium").n_ctx == 1029  # long documents exceed 1024


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_preset_gives_documents_and_survives_json(name):
    task = AssociativeTreecall.preset(name, grammar_seed=1, max_length=50)
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert len(task.sample(20, 0)) == len(task.sample(20, 0, "test")) == 20


def test_an_unknown_preset_lists_the_presets():
    with pytest.raises(ValueError, match="no preset named 'pcfg_hard'; the presets are .*pcfg_easy_8192"):
        AssociativeTreecall.preset("pcfg_hard")


def test_the_same_seed_gives_the_same_documents():
    task = AssociativeTreecall()
    first = task.sample(100, 7)
    assert torch.equal(first.tokens, task.sample(100, 7).tokens)
    for other in (task.sample(100, 8), task.sample(100), task.sample(100, 7, "test")):
        assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)
    generator = torch.Generator().manual_seed(0)
    one, two = task.sample(50, generator), task.sample(50, generator)
    assert torch.equal(one.tokens, task.sample(50, torch.Generator().manual_seed(0)).tokens)
    assert one.tokens.shape != two.tokens.shape or not torch.equal(one.tokens, two.tokens)


GOLDEN = [
    (
        dict(),
        "train",
        [[1, 8, 10, 3, 16, 8, 2, 10, 16, 2, 0, 0, 0], [1, 22, 20, 8, 13, 5, 13, 9, 10, 2, 5, 13, 2]],
    ),
    (dict(), "test", [[1, 6, 16, 7, 4, 7, 7, 2, 16, 7, 2], [1, 6, 16, 16, 4, 17, 2, 4, 17, 2, 0]]),
    (
        dict(head="left", queries="parent+sibling", held_out=0.2, n_terminals=64),
        "test",
        [
            [1, 5, 66, 3, 64, 6, 21, 6, 9, 24, 15, 35, 61, 55, 2, 64, 69, 21, 2],
            [1, 60, 11, 51, 9, 41, 2, 11, 67, 60, 2, 0, 0, 0, 0, 0, 0, 0, 0],
        ],
    ),
]


@pytest.mark.parametrize("setting, split, tokens", GOLDEN)
def test_golden_documents(setting, split, tokens):
    """Published numbers rest on the documents of a seed: these never change."""
    assert AssociativeTreecall(**setting).sample(2, 0, split).tokens.tolist() == tokens


def test_no_global_generator_is_touched():
    torch.manual_seed(0)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    task = AssociativeTreecall(grammar_seed=99)
    for generator in (None, 0, torch.Generator().manual_seed(0)):
        docs = task.sample(20, generator, "test")
        for procedure in ("unambiguous", "original"):
            task.corrupt(docs, "key", generator, procedure)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert all(np.array_equal(was, now) for was, now in zip(numpy_state, np.random.get_state(), strict=True))


def test_documents_do_not_depend_on_the_number_of_threads():
    task, threads = AssociativeTreecall(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = task.sample(5000, 0).tokens
        torch.set_num_threads(2)
        assert torch.equal(one, task.sample(5000, 0).tokens)
    finally:
        torch.set_num_threads(threads)


def test_documents_keep_their_trees_under_indexing_and_moving():
    docs = AssociativeTreecall().sample(20, 0)
    some = docs[torch.tensor([3, 1])]
    assert type(some) is type(docs) is type(docs[:0]) is type(docs.to("meta"))
    for name in ("tokens", "parent", "depth", "span", "relation"):
        assert torch.equal(getattr(some, name), getattr(docs, name)[[3, 1]])
        assert getattr(docs.to("meta"), name).device.type == "meta"
    assert len(docs[:0].distance) == 0


def test_trees_of_another_batch_are_refused_by_name():
    docs = AssociativeTreecall().sample(4, 0)
    for name in ("parent", "depth", "span", "relation"):
        mixed = docs[:]
        object.__setattr__(mixed, name, getattr(docs[:3], name))
        with pytest.raises(ValueError, match=rf"{name} must have shape \[4.*got \[3"):
            mixed.__post_init__()


def test_rejections_are_shares_of_the_sentences_drawn():
    task = AssociativeTreecall(max_length=20)
    shares = task.rejections(20_000)
    assert set(shares) == {"kept", "too_short", "too_long", "other_split", "without_pair"}
    assert sum(shares.values()) == pytest.approx(1)
    assert 0.02 < shares["too_long"] < 0.2 and shares["other_split"] == pytest.approx(0.17, abs=0.03)
    assert AssociativeTreecall(max_length=40).rejections()["too_long"] < shares["too_long"]
    assert int(task.sample(2000, 0).length.max()) == 20


def test_tokens_are_named():
    task = AssociativeTreecall()
    names = [task.token_name(token) for token in (0, 1, 2, 3, 22, 23, 24, 25)]
    assert names == ["PAD", "BOS", "EOS", "t0", "t19", "PARENT", "CHILD", "SIBLING"]


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(n_terminals=0), "n_terminals must be at least 1, got 0"),
        (dict(terminal_factor=-1.0), "terminal_factor must be above 0, .* got -1.0"),
        (dict(head="middle"), "head must be one of left, right, got 'middle'"),
        (dict(queries="parent+uncle"), "queries must be one of parent, child, sibling, got 'uncle'"),
        (dict(queries="parent+parent"), "queries must name each relation once, got 'parent.parent'"),
        (dict(first="answer"), "first must be one of target, query, got 'answer'"),
        (dict(held_out=1.0), r"held_out must be in \[0, 1\), got 1.0"),
        (dict(n_terminals=2, held_out=0.001), "holds out 0 of 4 pairs of labels"),
        (dict(test_share=0.001), r"test_share must be 0 \(no split\) or in \[0.01, 0.9\], .* got 0.001"),
        (dict(max_length=2), "max_length must be at least 3, got 2"),
        (dict(max_children=1, max_depth=1), "no sentence of this grammar has 3 words, .* raise max_children"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        AssociativeTreecall(**wrong)


def test_a_grammar_without_short_sentences_is_refused():
    seed = next(s for s in range(200) if AssociativeTreecall(grammar_seed=s, **LONG).grammar.shortest > 3)
    with pytest.raises(ValueError, match=r"at most max_length=3 words, the shortest has \d+; raise max"):
        AssociativeTreecall(grammar_seed=seed, **(LONG | {"max_length": 3}))


LONG = dict(n_nonterminals=2, max_rules=1, max_children=12, max_length=1024)


@pytest.mark.parametrize("wrong", [dict(grammar_seed=0.5), dict(split_seed=True), dict(test_share="0.1")])
def test_settings_of_the_wrong_type_are_refused(wrong):
    with pytest.raises(TypeError):
        AssociativeTreecall(**wrong)


@pytest.mark.parametrize(
    "setting, said",
    [
        # one label: the last word is the only one without a later copy, and it is the root
        (dict(n_terminals=1), "raise n_terminals"),
        (dict(queries="sibling", max_children=1), "raise n_terminals or max_children, or ask about more"),
    ],
    ids=str,
)
def test_a_search_without_end_ends_in_an_error_that_names_a_parameter(setting, said):
    task = AssociativeTreecall(**setting)
    with pytest.raises(ValueError, match=rf"gave up looking for documents of the train split: .*({said})"):
        task.sample(10, 0)


def test_bad_sampling_arguments_are_refused():
    task = AssociativeTreecall()
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        task.sample(0)
    with pytest.raises(ValueError, match="split must be one of train, test, got 'dev'"):
        task.sample(1, 0, "dev")
    with pytest.raises(ValueError, match="split must be one of train, test, got 'dev'"):
        task.rejections(1, 0, "dev")
