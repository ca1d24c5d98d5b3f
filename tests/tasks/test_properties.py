"""Every registered task keeps `tasks.contract` at settings that nobody chose, and a broken one does not."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import BOS, EOS, AssociativeRecall, SelectiveCopying, Task
from tasks.contract import check_task
from tasks.task import PROCEDURES

MANY = settings(max_examples=20, deadline=None, derandomize=True)


# Strategies give settings; the test makes the task, whose checked annotations call `random`, which a strategy
# must not. To be corrupted, a document needs a token to spare: one more key than pairs, one more value.
@st.composite
def pairs(draw):
    n_pairs = draw(st.integers(1, 6))
    if draw(st.booleans()):  # so many of each that neither split is empty nor hard to find
        split = {"held_out": draw(st.floats(0.05, 0.5)), "split_seed": draw(st.integers(-(2**63), 2**63))}
        return {"n_pairs": n_pairs, "n_keys": 40, "n_values": 30} | split
    n_keys, n_values = (n_pairs + draw(st.integers(1, 30)) for _ in range(2))
    return {"n_pairs": n_pairs, "n_keys": n_keys, "n_values": n_values}


@st.composite
def associative_recall(draw):
    settings = draw(pairs())
    n_queries = draw(st.integers(1, settings["n_pairs"]))
    return settings | {"n_queries": n_queries, "query": draw(st.sampled_from(["key", "value"]))}


@st.composite
def multi_query_associative_recall(draw):
    settings = draw(pairs())
    length = 4 * settings["n_pairs"] + 2 * draw(st.integers(0, 10))
    return settings | {
        "length": length,
        "power": draw(st.floats(0, 1)),
        "random_filler": draw(st.booleans()),
    }


@st.composite
def associative_treecall(draw):
    relations = draw(st.lists(st.sampled_from(["parent", "child", "sibling"]), min_size=1, unique=True))
    choices = {
        "n_terminals": [20, 60],
        "n_nonterminals": [10, 40],
        "max_children": [2, 4, 9],
        "head": ["left", "right"],
        "first": ["target", "query"],
        "rightmost": [True, False],
        "self_siblings": [True, False],
        "held_out": [0.0, 0.2],
        "test_share": [0.0, 0.2],
        "max_length": [20, 200],
    }
    drawn = {name: draw(st.sampled_from(values)) for name, values in choices.items()}
    return drawn | {"grammar_seed": draw(st.integers(0, 50)), "queries": "+".join(relations)}


@st.composite
def induction(draw):
    length = draw(st.integers(2, 20))
    n_tokens, n_repeated = length + draw(st.integers(1, 40)), draw(st.integers(2, length))
    return {"n_tokens": n_tokens, "length": length, "n_repeated": n_repeated}


@st.composite
def selective_copying(draw):
    length = draw(st.integers(1, 40))
    n_copied, n_tokens = draw(st.integers(1, length)), draw(st.integers(2, 20))
    return {"n_tokens": n_tokens, "n_copied": n_copied, "length": length}


STRATEGIES = {
    "associative_recall": associative_recall(),
    "associative_treecall": associative_treecall(),
    "induction": induction(),
    "multi_query_associative_recall": multi_query_associative_recall(),
    "selective_copying": selective_copying(),
}


def test_every_task_of_the_package_has_a_strategy():
    own = {name for name, task in Task.registry.items() if task.__module__.startswith("tasks.")}
    assert own == set(STRATEGIES)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_contract_holds(name):
    @MANY
    @given(setting=STRATEGIES[name], n=st.integers(1, 12), seed=st.integers(0, 2**32))
    def holds(setting, n, seed):
        check_task(Task.from_dict({"task": name} | setting), n, seed)

    holds()


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_splits_and_seeds_differ(name):
    task = Task.from_dict({"task": name})  # at the defaults no two documents are likely to be the same
    documents = [task.sample(3, seed, split).tokens for seed in (0, 1) for split in ("train", "test")]
    for i, one in enumerate(documents):
        assert not any(one.shape == other.shape and torch.equal(one, other) for other in documents[:i])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_documents_on_a_gpu_are_corrupted_and_scored_as_on_the_cpu(name):
    task = Task.from_dict({"task": name})
    docs = task.sample(20, 0)
    for procedure in PROCEDURES:
        there = task.corrupt(docs.to("cuda"), "key", 0, procedure)
        assert torch.equal(there.tokens.cpu(), task.corrupt(docs, "key", 0, procedure).tokens)
    scores = task.heuristics(docs)
    for rule, score in task.heuristics(docs.to("cuda")).items():
        torch.testing.assert_close(score.cpu(), scores[rule], rtol=0, atol=1e-6)


# What follows shows that the contract can fail, and says what is wrong.
# The task has 15 ids and 11 tokens: BOS, a body 1 .. 6, the divider 7, the query 8, the answer 9, EOS.
TASK = AssociativeRecall(n_keys=6, n_values=6, n_pairs=3)
SAMPLE, CORRUPT = AssociativeRecall.sample, AssociativeRecall.corrupt


def write(docs, token, at):
    tokens = docs.tokens.clone()
    tokens[:, at] = token
    return replace(docs, tokens=tokens)


def place(docs, at, *names):
    moved = {name: torch.full_like(docs.answer, at) for name in names}
    return replace(docs, positions=docs.positions | moved)


def without(docs, name):
    return replace(docs, positions={other: pos for other, pos in docs.positions.items() if other != name})


def predict(docs, at):
    return replace(without(docs, "target_item"), answer_pos=torch.full_like(docs.answer, at))


WRONG_DOCUMENTS = {
    "a token is not in 0 .. 14, in document 0": lambda docs: write(docs, 15, 4),
    "a label is not -100 nor in 0 .. 14": lambda docs: replace(docs, labels=docs.labels + 50),
    "the first token is not BOS": lambda docs: write(docs, EOS, 0),
    "there is no position 'divider' among": lambda docs: without(docs, "divider"),
    "position 'target_item' is not in 0 .. 10": lambda docs: place(docs, 11, "target_item"),
    "'key' and 'query_item_orig' differ": lambda docs: place(docs, 2, "key"),
    "the key is not in the body": lambda docs: place(docs, 8, "key", "query_item_orig"),
    "the value is not in the body": lambda docs: place(docs, 0, "value", "target_item_orig"),
    "the query does not follow the divider": lambda docs: place(docs, 7, "query", "query_item"),
    "the divider is not EOS": lambda docs: write(docs, BOS, 7),
    "the value is not the answer": lambda docs: place(docs, 1, "value", "target_item_orig"),
    "the query does not repeat the key": lambda docs: place(docs, 9, "query", "query_item"),
    "the target item does not follow": lambda docs: place(docs, 8, "target_item"),
    "the target item is not the answer": lambda docs: write(docs, BOS, 9),
    "answer_pos is not in 0 .. 10": lambda docs: predict(docs, 11),
    "the answer is predicted before the query": lambda docs: predict(docs, 7),
    "the label at answer_pos is not the answer": lambda docs: predict(docs, 9),
}


@pytest.mark.parametrize("said", WRONG_DOCUMENTS)
def test_wrong_documents_are_found(said, monkeypatch):
    wrong = WRONG_DOCUMENTS[said]
    monkeypatch.setattr(AssociativeRecall, "sample", lambda self, *args: wrong(SAMPLE(self, *args)))
    with pytest.raises(AssertionError, match=said):
        check_task(TASK)


@pytest.mark.parametrize(
    "said, scores",
    [
        (r"the scores of 'guess' have shape \[1\] for 20 documents", {"guess": torch.ones(1)}),
        ("the score of 'guess' is no probability, in document 0", {"guess": torch.full((20,), 1.5)}),
        ("the rule that solves the task, 'induction', is not among guess", {"guess": torch.ones(20)}),
        ("the rule that solves the task, 'induction', does not", {"induction": torch.arange(20) % 2}),
        (r"corrupting 'key' \(unambiguous\) leaves 'induction' right", {"induction": torch.ones(20)}),
    ],
)
def test_wrong_heuristics_are_found(said, scores, monkeypatch):
    monkeypatch.setattr(AssociativeRecall, "heuristics", lambda self, docs: scores)
    with pytest.raises(AssertionError, match=said):
        check_task(TASK)


def overwrite(docs, corrupted):
    docs.tokens.copy_(corrupted.tokens)
    return docs


WRONG_CORRUPTIONS = {
    "changes the clean documents": lambda docs, corrupted: overwrite(docs, corrupted),
    "gives a token not in 0 .. 14": lambda docs, corrupted: write(corrupted, 15, 4),
    "changes more than tokens": lambda docs, corrupted: replace(corrupted, answer=docs.answer + 1),
    "again changes something else": lambda docs, corrupted: CORRUPT(TASK, docs, "key"),
    "does not change the token there, in document 0": lambda docs, corrupted: docs,
    "changes a token that is no copy of the one there": lambda docs, corrupted: write(corrupted, BOS, 10),
}


@pytest.mark.parametrize("said", WRONG_CORRUPTIONS)
def test_wrong_corruptions_are_found(said, monkeypatch):
    wrong = WRONG_CORRUPTIONS[said]
    monkeypatch.setattr(
        AssociativeRecall, "corrupt", lambda self, docs, *args: wrong(docs, CORRUPT(self, docs, *args))
    )
    with pytest.raises(AssertionError, match=rf"corrupting 'key' \(unambiguous\) {said}"):
        check_task(TASK)


def test_an_original_corruption_of_two_tokens_is_found(monkeypatch):
    def corrupt(self, docs, site, seed, procedure):
        corrupted = CORRUPT(self, docs, site, seed, procedure)
        return write(corrupted, BOS, 10) if procedure == "original" else corrupted

    monkeypatch.setattr(AssociativeRecall, "corrupt", corrupt)
    with pytest.raises(AssertionError, match=r"corrupting 'key' \(original\) changes another token, too"):
        check_task(TASK)


@pytest.mark.parametrize("alike", [True, False])
def test_copies_in_the_body_may_be_replaced_too_but_alike(alike, monkeypatch):
    task, original = SelectiveCopying(n_tokens=6, n_copied=6, length=6), SelectiveCopying.corrupt

    def corrupt(self, docs, site, seed, procedure):
        corrupted = original(self, docs, site, seed, procedure)
        if procedure == "original":
            return corrupted
        where = docs.positions[site][:, None]
        old, new = docs.tokens.gather(1, where), corrupted.tokens.gather(1, where)
        other = new if alike else torch.full_like(new, BOS)
        tokens = torch.where(corrupted.tokens == old, other, corrupted.tokens)
        return replace(corrupted, tokens=tokens)

    monkeypatch.setattr(SelectiveCopying, "corrupt", corrupt)
    if alike:
        check_task(task)
    else:
        with pytest.raises(AssertionError, match="replaces copies of one token by several"):
            check_task(task)


def test_documents_that_do_not_follow_from_the_seed_are_found(monkeypatch):
    monkeypatch.setattr(
        AssociativeRecall, "sample", lambda self, n, seed, split: SAMPLE(self, n, None, split)
    )
    with pytest.raises(AssertionError, match="train documents of seed 0 differ when they are drawn again"):
        check_task(TASK)


def test_a_global_generator_that_moves_is_found(monkeypatch):
    monkeypatch.setattr(
        AssociativeRecall, "sample", lambda self, *args: torch.rand(1) is not None and SAMPLE(self, *args)
    )
    with pytest.raises(AssertionError, match="sampling moves torch's global generator"):
        check_task(TASK)


def test_settings_that_do_not_survive_json_are_found(monkeypatch):
    monkeypatch.setattr(AssociativeRecall, "to_dict", lambda self: {"task": self.name})
    with pytest.raises(AssertionError, match="n_keys=6.* came back from JSON as .*n_keys=4096"):
        check_task(TASK)


def test_a_class_that_is_not_registered_is_found(monkeypatch):
    monkeypatch.delitem(Task.registry, "associative_recall")
    with pytest.raises(AssertionError, match="'associative_recall' is registered as None"):
        check_task(TASK)
