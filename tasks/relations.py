"""Which words of a tree a query may ask about, and the drawing of one question a sentence.

    relation   a query at word i is answered by       with heads right, that is
    parent     the parent of i                        to the right, one
    child      a child of i                           to the left, one of several
    sibling    the rightmost child of i's parent      to the right, one; or i itself

A pair (query word, target word) is eligible unless a rule excludes it. Words are numbered through all
sentences of a `Trees`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from tasks.held_out import is_held_out
from tasks.trees import Trees

RELATIONS = ("parent", "child", "sibling")


@dataclass(frozen=True)
class Eligible:
    """The rules for pairs.

    rightmost: the query must be the last word of its sentence with its label; a sibling that answers, too.
    self_siblings: whether a word without a sibling to its right is paired with itself.
    held_out, split_seed: the share of (target label, query label) pairs asked in the test split alone.
    """

    rightmost: bool
    self_siblings: bool
    held_out: float
    split_seed: int

    def pairs(self, trees: Trees, relation: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The query word and the target word of each eligible pair."""
        query, target = related(trees, relation)
        ok = np.ones(len(query), dtype=bool)
        if self.rightmost:
            last = is_last_of_its_label(trees)
            ok &= last[query]
            if relation == "sibling":
                ok &= last[target]
        if relation == "sibling" and not self.self_siblings:
            ok &= query != target
        if self.held_out:
            said, asked = (torch.from_numpy(trees.label[words]) for words in (target, query))
            ok &= is_held_out(said, asked, self.held_out, self.split_seed).numpy() == (split == "test")
        return query[ok], target[ok]


def related(trees: Trees, relation: str) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """Query and target of every pair of words in the relation, eligible or not."""
    words = np.arange(len(trees.label))
    has_parent = trees.parent >= 0
    parent = np.where(has_parent, trees.parent + np.repeat(trees.first, trees.length), words)
    if relation == "sibling":
        last = words.copy()  # the root is its own last sibling
        children = np.flatnonzero(has_parent)
        last_child = np.empty_like(words)
        last_child[parent[children]] = children  # where an index repeats, the last value stays: the rightmost
        last[children] = last_child[parent[children]]
        return words, last
    child = words[has_parent]
    return (child, parent[child]) if relation == "parent" else (parent[child], child)


def is_last_of_its_label(trees: Trees) -> Bool[np.ndarray, " word"]:
    """Whether no later word of the sentence has the same label."""
    n = len(trees.label)
    group = trees.tree * (int(trees.label.max(initial=0)) + 1) + trees.label
    ordered = np.sort(group * n + np.arange(n))  # by sentence, label, place; numbers sort faster than keys
    group, word = np.divmod(ordered, n) if n else (ordered, ordered)
    last = np.empty(n, dtype=bool)
    last[word] = np.append(group[1:] != group[:-1], True)[:n]
    return last


def draw_questions(
    trees: Trees,
    relations: tuple[str, ...],
    eligible: Eligible,
    first: str,
    split: str,
    generator: torch.Generator,
) -> tuple[Bool[np.ndarray, " tree"], Int[np.ndarray, "asked 3"]]:
    """For each sentence that has an eligible pair: the number of its relation, its query, its target.

    The relation is uniform over those that have a pair, then `first` ("target" or "query") is uniform over
    the words which occur as it, then the other over those paired with it. Also returns which sentences have
    a pair. Query and target are numbered within their sentence.
    """
    n = len(trees)
    u = torch.rand(3, n, generator=generator, dtype=torch.float64).numpy()
    found = [eligible.pairs(trees, relation, split) for relation in relations]
    swap = slice(None, None, 1 if first == "query" else -1)
    choices = [Choice(n, trees.tree, *pairs[swap]) for pairs in found]

    possible = np.stack([choice.n_first > 0 for choice in choices], axis=1)
    can_be_asked = np.asarray(possible.any(axis=1))
    asked = np.flatnonzero(can_be_asked)
    # the k-th relation that is possible, k uniform
    rank = (u[0, asked] * possible[asked].sum(1)).astype(np.int64)
    number = (np.cumsum(possible[asked], axis=1) > rank[:, None]).argmax(1)
    pairs = np.empty((len(asked), 2), dtype=np.int64)
    for i, choice in enumerate(choices):
        here = number == i
        pairs[here] = choice.draw(asked[here], u[1], u[2])
    query_target = (pairs[:, swap] - trees.first[asked, None]).astype(np.int64)
    kinds = np.array([RELATIONS.index(relation) for relation in relations])
    return can_be_asked, np.column_stack((kinds[number], query_target))


class Choice:
    """Pairs of words by sentence and by first word, to draw one a sentence: the first, then the second."""

    def __init__(
        self,
        n_trees: int,
        tree: Int[np.ndarray, " word"],
        first: Int[np.ndarray, " pair"],
        second: Int[np.ndarray, " pair"],
    ):
        n = max(1, len(tree))
        self.first, self.second = np.divmod(np.sort(first * n + second), n)
        new = np.flatnonzero(np.diff(self.first, prepend=-1))  # where each distinct first word begins
        self.begin, self.n_second = new, np.diff(new, append=len(self.first))
        self.n_first = np.bincount(tree[self.first[new]], minlength=n_trees)
        self.before = np.cumsum(self.n_first) - self.n_first

    def draw(
        self,
        trees: Int[np.ndarray, " asked"],
        u_first: Float[np.ndarray, " tree"],
        u_second: Float[np.ndarray, " tree"],
    ) -> Int[np.ndarray, "asked 2"]:
        """A pair of each of these sentences, from two uniform numbers each."""
        pick = self.before[trees] + (u_first[trees] * self.n_first[trees]).astype(np.int64)
        pair = self.begin[pick] + (u_second[trees] * self.n_second[pick]).astype(np.int64)
        return np.stack((self.first[pair], self.second[pair]), axis=1)
