"""The law of a treecall document: a sentence of the grammar that can be asked about, and one question.

Sentences are drawn until enough are kept. One is dropped that has fewer than 3 words or more than max_length,
whose body belongs to the other split (`tasks.bodies`), or that has no eligible pair (`tasks.relations`).
"""

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Int

from tasks.bodies import is_test_body
from tasks.grammar import Grammar
from tasks.held_out import is_held_out
from tasks.relations import Eligible, draw_questions
from tasks.trees import Trees, draw_trees

LEAST_WORDS = 3
WORDS_AT_ONCE = 1 << 16  # of a chunk of sentences: its arrays stay near a core's second-level cache
LEAST_RATE = 1e-3  # of sentences that are kept, the test's share of bodies aside; rarer ones are not searched
SMALL_TABLE = 1 << 16  # pairs of labels few enough to count the held-out ones


@dataclass(frozen=True)
class Tally:
    """What became of the sentences that were drawn; each is counted once."""

    drawn: int = 0
    kept: int = 0
    too_short: int = 0
    too_long: int = 0
    other_split: int = 0
    without_pair: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        both = zip(asdict(self).items(), asdict(other).values(), strict=True)
        return Tally(**{name: mine + theirs for (name, mine), theirs in both})

    def shares(self) -> dict[str, float]:
        """Each count as a share of the sentences drawn."""
        return {name: count / self.drawn for name, count in asdict(self).items() if name != "drawn"}


@dataclass(frozen=True)
class TreeLaw:
    """relations: those that are asked; first: "target" or "query"; test_share: of bodies, 0 for no split."""

    grammar: Grammar
    head: str
    relations: tuple[str, ...]
    first: str
    eligible: Eligible
    test_share: float
    max_length: int

    def check(self) -> None:
        """ValueError where there is seen to be no document."""
        if self.grammar.longest < LEAST_WORDS:
            raise ValueError(
                f"no sentence of this grammar has {LEAST_WORDS} words, the longest has "
                f"{self.grammar.longest}; raise max_children or max_depth, or take another grammar_seed."
            )
        if self.grammar.shortest > self.max_length:
            raise ValueError(
                f"no sentence of this grammar has at most max_length={self.max_length} words, the shortest "
                f"has {self.grammar.shortest}; raise max_length."
            )
        held_out, n = self.eligible.held_out, self.grammar.n_terminals
        if held_out and n * n <= SMALL_TABLE:
            pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
            n_held = int(is_held_out(pairs[:, 0], pairs[:, 1], held_out, self.eligible.split_seed).sum())
            if n_held in (0, n * n):
                raise ValueError(
                    f"held_out={held_out} with split_seed={self.eligible.split_seed} holds out {n_held} of "
                    f"{n * n} pairs of labels, so that one split is empty; change either."
                )

    def sample(
        self, n: int, generator: torch.Generator, split: str
    ) -> tuple[Trees, Int[np.ndarray, "asked 3"], Tally]:
        """n sentences, their questions (relation, query, target), and what became of all that were drawn.

        Raises ValueError, after a bounded search, where fewer than a thousandth of sentences can be kept.
        """
        own_share = self._share(split)
        parts, questions, tally, rate = [], [], Tally(), 0.5 * own_share
        while tally.kept < n:
            if tally.drawn * LEAST_RATE * own_share > tally.kept + 10:
                raise ValueError(self._why_not(tally, split))
            wanted = math.ceil(1.05 * (n - tally.kept) / rate) + 4
            trees, asked, some = self.draw(min(self._at_once, wanted), generator, split)
            parts.append(trees)
            questions.append(asked)
            tally += some
            rate = max(tally.kept / tally.drawn, LEAST_RATE * own_share)
        kept = Trees.join(parts)
        return kept.keep(np.arange(len(kept)) < n), np.concatenate(questions)[:n], tally

    def draw(
        self, n: int, generator: torch.Generator, split: str
    ) -> tuple[Trees, Int[np.ndarray, "asked 3"], Tally]:
        """What is kept of n sentences, with questions."""
        trees, too_long = draw_trees(self.grammar, n, generator, head=self.head, max_length=self.max_length)
        tally = Tally(drawn=n, too_long=too_long, too_short=int((trees.length < LEAST_WORDS).sum()))
        trees = trees.keep(trees.length >= LEAST_WORDS)
        if self.test_share:
            mine = is_test_body(trees, self.test_share, self.eligible.split_seed) == (split == "test")
            tally = replace(tally, other_split=int((~mine).sum()))
            trees = trees.keep(mine)
        can_be_asked, questions = draw_questions(
            trees, self.relations, self.eligible, self.first, split, generator
        )
        counts = replace(tally, without_pair=int((~can_be_asked).sum()), kept=len(questions))
        return trees.keep(can_be_asked), questions, counts

    def tally(self, n: int, generator: torch.Generator, split: str) -> Tally:
        """What becomes of n sentences."""
        tally = Tally()
        while tally.drawn < n:
            tally += self.draw(min(self._at_once, n - tally.drawn), generator, split)[2]
        return tally

    @property
    def _at_once(self) -> int:
        return max(16, int(WORDS_AT_ONCE / min(self.grammar.mean_length, self.max_length)))

    def _share(self, split: str) -> float:
        return self.test_share if split == "test" and self.test_share else 1 - self.test_share

    def _why_not(self, tally: Tally, split: str) -> str:
        eligible = self.eligible
        advice = {
            "raise max_length, or lower max_children or max_depth": (tally.too_long, tally.drawn),
            "raise max_children or max_depth, or lower terminal_factor": (tally.too_short, tally.drawn),
            (
                f"change held_out={eligible.held_out}"
                if eligible.held_out
                else "raise n_terminals or max_children, or ask about more relations in queries"
            ): (tally.without_pair, tally.without_pair + tally.kept),
        }
        # the step at which the largest share of those that come to it are dropped
        worst = max(advice, key=lambda step: advice[step][0] / max(1, advice[step][1]))
        return (
            f"gave up looking for documents of the {split} split: {tally.kept} among {tally.drawn} "
            f"sentences. {tally.too_short} had fewer than {LEAST_WORDS} words, {tally.too_long} more than "
            f"max_length={self.max_length}, {tally.other_split} belong to the other split, "
            f"{tally.without_pair} have no eligible pair. Try to {worst}, or take another grammar_seed."
        )
