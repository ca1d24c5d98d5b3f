"""Sentences of a grammar with their trees: many at once, a level of all of them at a time.

Top down, the constituents of one level are expanded together: rules, heads, children. Each symbol that comes
to light will say exactly one word (a terminal itself, a nonterminal its head), so a sentence that has more
than max_length of them is given up at once, however much is still to be expanded. Bottom up, the children's
numbers of words add up to their parents'. Top down again, these give everyone's place in the sentence.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Int

from tasks.categorical import ONE
from tasks.grammar import Grammar


@dataclass(frozen=True, eq=False)
class Trees:
    """Sentences one after the other, word by word; the words of each are numbered from 0.

    length: words of each sentence. label: the terminal. parent: the head of the constituent around, -1 for
    the root. depth: how many constituents are around the word, its own included: 1 for the root and for its
    terminals. start, stop: the constituent of a head, the word itself otherwise: words start .. stop - 1.
    """

    length: Int[np.ndarray, " tree"]
    label: Int[np.ndarray, " word"]
    parent: Int[np.ndarray, " word"]
    depth: Int[np.ndarray, " word"]
    start: Int[np.ndarray, " word"]
    stop: Int[np.ndarray, " word"]

    def __len__(self) -> int:
        return len(self.length)

    @property
    def first(self) -> Int[np.ndarray, " tree"]:
        """The number of each sentence's first word, counted through all sentences."""
        return np.cumsum(self.length) - self.length

    @property
    def tree(self) -> Int[np.ndarray, " word"]:
        """The number of each word's sentence."""
        return np.repeat(np.arange(len(self)), self.length)

    def keep(self, which: Bool[np.ndarray, " tree"]) -> "Trees":
        """The trees where `which` is true."""
        if which.all():
            return self
        words = np.repeat(which, self.length)
        of_words = {f.name: getattr(self, f.name)[words] for f in fields(self) if f.name != "length"}
        return replace(self, length=self.length[which], **of_words)

    @staticmethod
    def join(parts: "list[Trees]") -> "Trees":
        """The trees of all parts, in order."""
        names = [f.name for f in fields(Trees)]
        return Trees(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@dataclass(eq=False)
class _Level:
    """Symbols of one level of all trees, siblings side by side, in the order of their parents."""

    tree: Int[np.ndarray, " symbol"]
    label: Int[np.ndarray, " symbol"]  # the word said; of a nonterminal, its number until it is expanded
    inner: Int[np.ndarray, " constituent"]  # which of the symbols were expanded
    n_children: Int[np.ndarray, " constituent"]

    @property
    def first_child(self) -> Int[np.ndarray, " constituent"]:
        return np.cumsum(self.n_children) - self.n_children


def draw_trees(
    grammar: Grammar, n: int, generator: torch.Generator, *, head: str, max_length: int
) -> tuple[Trees, int]:
    """n sentences with heads at the "left" or "right" edge, less those of more than max_length words.

    Returns the trees left, and the number of those that were too long.
    """
    levels, n_words = expand(grammar, n, generator, max_length)
    whole = n_words <= max_length
    return place(levels, whole, n_words, head), int(n - whole.sum())


def expand(
    grammar: Grammar, n: int, generator: torch.Generator, max_length: int
) -> tuple[list[_Level], Int[np.ndarray, " tree"]]:
    """The symbols of each level, and each tree's number of words as far as it was expanded."""
    sides = [rule.symbols for rules in grammar.rules for rule in rules]
    width = max(map(len, sides))
    symbols = np.array([side + (0,) * (width - len(side)) for side in sides])
    side_length = np.array([len(side) for side in sides])

    tree, n_words = np.arange(n), np.ones(n, dtype=np.int64)
    starts = np.arange(grammar.n_terminals, grammar.n_terminals + grammar.n_nonterminals)
    symbol = starts[torch.randint(len(starts), (n,), generator=generator).numpy()]
    levels = []
    while len(tree):
        inner = np.flatnonzero((symbol >= grammar.n_terminals) & (n_words <= max_length)[tree])
        x = symbol[inner] - grammar.n_terminals
        u_rule, u_head = torch.randint(ONE, (2, len(x)), generator=generator).numpy()
        rule = grammar.rule_table.draw(x, u_rule)
        symbol[inner] = grammar.head_table.draw(x, u_head) - x * grammar.n_terminals
        n_children = side_length[rule]
        levels.append(_Level(tree, symbol, inner, n_children))

        symbol = symbols[rule][np.arange(width) < n_children[:, None]]
        tree = np.repeat(tree[inner], n_children)
        n_words += np.bincount(tree, minlength=n)
    return levels, n_words


def place(
    levels: list[_Level],
    whole: Bool[np.ndarray, " tree"],
    n_words: Int[np.ndarray, " tree"],
    head: str,
) -> Trees:
    """The words of the whole trees in the order of their sentences."""
    sizes = [np.ones(len(level.tree), dtype=np.int64) for level in levels]
    for level, size, below in zip(levels[-2::-1], sizes[-2::-1], sizes[:0:-1], strict=True):
        if len(level.inner):
            size[level.inner] += np.add.reduceat(below, level.first_child)

    length = np.where(whole, n_words, 0)
    first = np.cumsum(length) - length
    empty = np.empty(int(length.sum()), dtype=np.int64)
    trees = Trees(length[whole], *(empty.copy() for _ in range(5)))
    start, parent = np.zeros(len(whole), dtype=np.int64), np.full(len(whole), -1)
    for depth, (level, size) in enumerate(zip(levels, sizes, strict=True)):
        word, stop = start.copy(), start + size
        if head == "right":
            word[level.inner] = stop[level.inner] - 1
        depths = np.full(len(word), depth)
        depths[level.inner] += 1

        kept = whole[level.tree]
        at = (first[level.tree] + word)[kept]
        for field, values in (
            (trees.label, level.label),
            (trees.parent, parent),
            (trees.depth, depths),
            (trees.start, start),
            (trees.stop, stop),
        ):
            field[at] = values[kept]
        if not len(level.inner):
            break
        below = sizes[depth + 1]
        before = np.cumsum(below) - below
        base = start[level.inner] + (head == "left") - before[level.first_child]
        start = np.repeat(base, level.n_children) + before
        parent = np.repeat(word[level.inner], level.n_children)
    return trees
