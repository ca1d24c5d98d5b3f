"""Test documents are new: none of their bodies is in training; held-out pairs are asked in the test alone."""

import numpy as np
import pytest
import torch

from tasks import AssociativeTreecall
from tasks.bodies import is_test_body
from tasks.held_out import is_held_out
from tasks.trees import Trees


def bodies(docs):
    stops = docs.positions["divider"].tolist()
    return [tuple(row[1:stop]) for row, stop in zip(docs.tokens.tolist(), stops, strict=True)]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_no_body_is_in_both_splits(share, seed):
    task = AssociativeTreecall(grammar_seed=seed, test_share=share)
    train, test = set(bodies(task.sample(20_000, 1))), set(bodies(task.sample(2000, 1, "test")))
    assert not train & test
    other = AssociativeTreecall(grammar_seed=seed, test_share=share, split_seed=1)
    assert set(bodies(other.sample(2000, 1, "test"))) & train  # another seed divides otherwise


def test_bodies_are_in_both_splits_if_asked_for_as_published():
    task = AssociativeTreecall(test_share=0.0)
    train, test = set(bodies(task.sample(20_000, 1))), bodies(task.sample(1000, 1, "test"))
    assert 0.2 < np.mean([body in train for body in test]) < 0.6


def test_the_split_depends_on_labels_and_their_order_alone():
    def split(*sentences):
        trees = Trees(
            np.array([len(s) for s in sentences]),
            np.concatenate([np.array(s) for s in sentences]),
            *[np.zeros(sum(map(len, sentences)), dtype=np.int64)] * 4,
        )
        return is_test_body(trees, 0.5, 3).tolist()

    sentences = np.random.default_rng(0).permuted(np.tile(np.arange(8), (200, 1)), axis=1).tolist()
    alone = [split(sentence)[0] for sentence in sentences]
    assert split(*sentences) == alone
    assert split(*sentences[::-1]) == alone[::-1]
    assert 0.3 < np.mean(alone) < 0.7  # permutations of the same labels are told apart
    longer = [split([*sentence, 0])[0] for sentence in sentences]
    assert 0.3 < np.mean(np.array(longer) == np.array(alone)) < 0.7


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_share_of_bodies_kept_for_the_test_is_the_one_asked_for(share):
    docs = AssociativeTreecall(grammar_seed=1, max_children=9, test_share=0.0).sample(20_000, 0)
    different = sorted(set(bodies(docs)))
    trees = Trees(
        np.array([len(body) for body in different]),
        np.concatenate([np.array(body) for body in different]),
        *[np.zeros(sum(map(len, different)), dtype=np.int64)] * 4,
    )
    kept = is_test_body(trees, share, 0)
    assert abs(kept.mean() - share) < 5 * (share * (1 - share) / len(different)) ** 0.5


@pytest.mark.parametrize("seed", range(4))
def test_the_split_of_bodies_keeps_the_law_of_documents_but_for_short_ones(seed):
    """What the docstring says: statistics of both splits are within some per cent of the published law's."""
    published = AssociativeTreecall(grammar_seed=seed, test_share=0.0)
    ours = AssociativeTreecall(grammar_seed=seed)
    whole = published.sample(20_000, 0)
    length, score = whole.length.double().mean(), published.heuristics(whole)["next_token"].mean()
    for split, slack in (("train", 0.04), ("test", 0.12)):
        docs = ours.sample(10_000, 0, split)
        assert abs(docs.length.double().mean() / length - 1) < slack
        assert abs(ours.heuristics(docs)["next_token"].mean() - score) < 0.05


@pytest.mark.parametrize("queries", ["parent", "child", "sibling", "parent+sibling"])
def test_held_out_pairs_are_asked_in_the_test_alone(queries):
    task = AssociativeTreecall(queries=queries, held_out=0.3, split_seed=2)
    for split in ("train", "test"):
        docs = task.sample(3000, 0, split)
        query = docs.tokens.gather(1, docs.positions["key"][:, None])[:, 0]
        held = is_held_out(docs.answer - 3, query - 3, 0.3, 2)
        assert bool((held == (split == "test")).all())


def test_held_out_pairs_still_occur_in_training_sentences():
    task = AssociativeTreecall(held_out=0.3)
    docs = task.sample(2000, 0)
    words = docs.parent >= 0
    labels = docs.tokens - 3
    parents = labels.gather(1, docs.parent.clamp(min=0).long())
    share = is_held_out(parents[words], labels[words], 0.3, 0).double().mean()
    assert abs(share - 0.3) < 0.1


def test_held_out_pairs_and_test_bodies_are_chosen_apart():
    docs = AssociativeTreecall(held_out=0.3).sample(2000, 0, "test")
    assert not set(bodies(docs)) & set(bodies(AssociativeTreecall(held_out=0.3).sample(20_000, 0)))
    assert torch.equal(docs.answer, docs.tokens.gather(1, docs.positions["value"][:, None])[:, 0])
