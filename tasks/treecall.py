"""Associative treecall: a sentence of a random grammar, then one of its words; say that word's parent.

    BOS  w1 w2 ... wn  EOS  q a  EOS          n words, 5 + n tokens

As in Arora, Rathi, Roashan Selvam, Csordás, Jurafsky & Potts (2025), arXiv:2505.15105, section 5.2. The words
of a sentence form a tree (`tasks.grammar`). With heads on the right, the parent comes after the word, and the
last word is the root. Where a word occurs more than once, the rightmost is meant. The answer is uniform over
the words which can be one, and the query over those that it answers; first="query" turns this round.

Token ids: PAD 0, BOS 1, EOS 2, then the terminals, then one token each for parent, child and sibling. Where
queries may be of several relations ("parent+sibling"), that token stands between the query and the answer,
and the answer is predicted there.

The grammar is drawn from grammar_seed. It matters: from one seed to another the mean length of sentences
varies by a factor of two. Simple rules score high (`heuristics`): the word after the key, and the root, are
each the parent in about half of all documents. `TreeDocuments.distance` and `query_depth` tell them apart.

Train and test. With test_share > 0 no body is in both splits: a hash of the body decides (`tasks.bodies`).
The law of a split is the published one given that the body is on its side. Which bodies are is random, so
long sentences, of which each is rare, keep their law. A common short body goes to one side as a whole; among
test documents, if it is theirs, it is 1 / test_share times as frequent as published, else absent. At the
defaults, over three grammars and four split seeds, this moved the mean length of test documents by up to 7 %,
of training documents by up to 2 %, and next_token's score by up to 3 points, up or down. test_share=0 draws
both splits from one law, as published; then, with 20 terminals, 30 to 50 % of test documents are among
100,000 training documents.

With held_out > 0, about that share of all pairs (target label, query label), chosen by a hash, is asked about
in the test split alone. In training such pairs still occur in sentences, as published.

Not as published: held-out pairs are chosen by a hash and not from a table, and the target of a sibling query
is the rightmost sibling of all, also where that pair is held out for the other split.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tasks import sampling, tree_heuristics
from tasks.corruption import original_token
from tasks.documents import Documents
from tasks.grammar import Grammar
from tasks.relations import RELATIONS, Eligible
from tasks.task import (
    FIRST_CONTENT_TOKEN,
    PROCEDURES,
    SPLITS,
    Task,
    check_choice,
    check_count,
    check_fraction,
)
from tasks.tree_corruption import without_a_way
from tasks.tree_documents import TreeDocuments, as_documents
from tasks.tree_law import LEAST_WORDS, TreeLaw

SHORT_NAMES = {"query_item_orig": "key", "target_item_orig": "value", "query_item": "query"}
LEAST_TEST_SHARE, MOST_TEST_SHARE = 0.01, 0.9

# What each published setting changes in the defaults. The paper's L_max is max_children + 1: its generator
# takes it as an exclusive bound.
PUBLISHED: dict[str, dict[str, Any]] = {
    "pcfg_easy": {},  # pcfg_vary_difficulty/pcfg_5_20: "L_max = 5, 20 terminals"
    "pcfg_easy_256": {"n_terminals": 256, "terminal_factor": 20.0},
    "pcfg_easy_8192": {"n_terminals": 8192, "terminal_factor": 20.0},
    "pcfg_medium": {"max_children": 9},  # pcfg_vary_difficulty/pcfg_10_20
    "pcfg_medium_256": {"max_children": 9, "n_terminals": 256, "terminal_factor": 20.0},
    "pcfg_medium_8192": {"max_children": 9, "n_terminals": 8192, "terminal_factor": 20.0},
    # Degenerate: all terminals together weigh 8192, so trees are flat: the root is the parent of every word.
    "pcfg_5_8192": {"n_terminals": 8192},
    "pcfg_train_test_split": {"held_out": 0.2},
    "multihop_parent": {"queries": "parent+sibling", "self_siblings": True},
    "multihop_no_parent": {"queries": "sibling", "self_siblings": True},
}
PUBLISHED |= {
    f"pcfg_vary_terminals_{n}": {"n_terminals": n, "terminal_factor": 20.0}
    for n in (20, 40, 80, 160, 320, 640, 1280)
}


@dataclass(frozen=True)
class AssociativeTreecall(Task, name="associative_treecall"):
    """n_terminals to grammar_seed: of the grammar, see `Grammar.draw`. The defaults are the paper's.

    head: the side of its constituent at which a head is said, "left" or "right". queries: the relations asked
    about, joined by "+". first: which of "target" and "query" is drawn first. rightmost: only words which do
    not occur again to the right are queried. self_siblings: a word without a sibling to its right is its own
    answer. held_out, test_share, split_seed: see above. max_length: of a body, in words.
    """

    n_terminals: int = 20
    n_nonterminals: int = 40
    max_children: int = 4
    max_rules: int = 5
    max_depth: int = 10
    terminal_factor: float | None = None
    grammar_seed: int = 0
    head: str = "right"
    queries: str = "parent"
    first: str = "target"
    rightmost: bool = True
    self_siblings: bool = False
    held_out: float = 0.0
    test_share: float = 0.2
    split_seed: int = 0
    max_length: int = 1024

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "AssociativeTreecall":
        """A setting of the paper by name (`PUBLISHED`), with changes to it.

        The test set is not the published one but has no body of training; test_share=0.0 is as published.
        """
        if name not in PUBLISHED:
            raise ValueError(f"no preset named {name!r}; the presets are {', '.join(sorted(PUBLISHED))}.")
        return cls(**(PUBLISHED[name] | changes))

    def __post_init__(self):
        check_choice("head", self.head, ("left", "right"))
        check_choice("first", self.first, ("target", "query"))
        for relation in self.relations:
            check_choice("queries", relation, RELATIONS)
        if len(set(self.relations)) != len(self.relations):
            raise ValueError(f"queries must name each relation once, got {self.queries!r}.")
        for name in ("grammar_seed", "split_seed"):
            seed = getattr(self, name)
            if isinstance(seed, bool) or not isinstance(seed, int):
                raise TypeError(f"{name} must be an integer, got {seed!r}.")
        check_fraction("held_out", self.held_out)
        check_fraction("test_share", self.test_share)
        if self.test_share and not LEAST_TEST_SHARE <= self.test_share <= MOST_TEST_SHARE:
            raise ValueError(
                f"test_share must be 0 (no split) or in [{LEAST_TEST_SHARE}, {MOST_TEST_SHARE}], so that "
                f"documents of both splits can be found, got {self.test_share}."
            )
        check_count("max_length", self.max_length, least=LEAST_WORDS)
        self._law.check()

    @property
    def grammar(self) -> Grammar:
        return _grammar(
            self.grammar_seed,
            self.n_terminals,
            self.n_nonterminals,
            self.max_children,
            self.max_rules,
            self.max_depth,
            self.terminal_factor,
        )

    @property
    def relations(self) -> tuple[str, ...]:
        """What is asked about."""
        return tuple(self.queries.split("+"))

    @property
    def d_vocab(self) -> int:
        return FIRST_CONTENT_TOKEN + self.n_terminals + len(RELATIONS)

    @property
    def n_ctx(self) -> int:
        return self.max_length + (5 if len(self.relations) == 1 else 6)

    def token_name(self, token: int) -> str:
        """How a token is shown: t0, t1, ... for terminals, the relations' names, BOS, EOS and PAD."""
        if token < FIRST_CONTENT_TOKEN:
            return ("PAD", "BOS", "EOS")[token]
        label = token - FIRST_CONTENT_TOKEN
        return f"t{label}" if label < self.n_terminals else RELATIONS[label - self.n_terminals].upper()

    def sample(
        self, n: int, generator: torch.Generator | int | None = None, split: str = "train"
    ) -> TreeDocuments:
        """n independent documents of a split, on the CPU, padded to the longest of them."""
        check_count("n", n, least=1)
        check_choice("split", split, SPLITS)
        generator = sampling.as_generator(generator, purpose=split)
        trees, questions, _ = self._law.sample(n, generator, split)
        several = len(self.relations) > 1
        return as_documents(trees, questions, FIRST_CONTENT_TOKEN + self.n_terminals if several else None)

    def rejections(
        self, n: int = 10_000, generator: torch.Generator | int | None = 0, split: str = "train"
    ) -> dict[str, float]:
        """Of n sentences drawn: the share kept, and those dropped for each reason.

        kept, too_short (fewer than 3 words), too_long (more than max_length), other_split (the body is on the
        other side), without_pair (nothing to ask about).
        """
        check_count("n", n, least=1)
        check_choice("split", split, SPLITS)
        return self._law.tally(n, sampling.as_generator(generator, purpose=split), split).shares()

    def corrupt(
        self,
        docs: Documents,
        site: str,
        generator: torch.Generator | int | None = None,
        procedure: str = "unambiguous",
    ) -> TreeDocuments:
        """The documents with another terminal at the named position `site` of each.

        "unambiguous" draws uniformly among the terminals that are neither the query nor the answer, and
        leaves no way from the query to the answer: no word with the query's label stands, as is asked, to
        one with the answer's. To this end further copies of the key (or value) that would do are replaced
        too, by the same terminal; mostly there is none, and one token changes. Copies of the key that lead to
        another answer stay. A corrupted query is a terminal that has no way to the answer either; where, in a
        long document, each has one, a terminal whose rightmost occurrence has none.

        "original" draws as the published interchange evaluation does: one token, uniform over all
        terminals but the one it replaces; an earlier copy of the key may then lead to the answer.
        """
        docs = self._check_documents(docs)
        check_choice("site", site, self.sites)
        check_choice("procedure", procedure, PROCEDURES)
        generator = sampling.as_generator(generator, purpose="corrupt")
        if procedure == "unambiguous":
            site = SHORT_NAMES.get(site, site)
            return replace(docs, tokens=without_a_way(docs, site, self.n_terminals, generator))
        where = docs.positions[site][:, None]
        old = docs.tokens.gather(1, where).squeeze(1)
        new = original_token(old, FIRST_CONTENT_TOKEN, self.n_terminals, generator)
        return replace(docs, tokens=docs.tokens.scatter(1, where, new[:, None]))

    def heuristics(self, docs: Documents) -> dict[str, Float[Tensor, " batch"]]:
        """For each simple rule, the probability that it gives the right answer to each document.

        - `uniform_vocabulary`, `uniform_tokens`, `uniform_distinct`: a uniform guess among all token ids, the
          words of the body, the different words of the body;
        - `first_token`, `last_token` (the root, with heads on the right): of the body;
        - `most_frequent_last`, `most_frequent_first`: the commonest word of the body, of several the one
          that occurs last, first;
        - `next_token` (associative recall's rule), `second_next_token`, `previous_token`: beside the key;
        - `copy_query`: the query itself.

        Rules that must be fitted to training documents are `tasks.tree_heuristics.FittedRules`.
        """
        return tree_heuristics.heuristics(self._check_documents(docs), self.d_vocab)

    @property
    def _law(self) -> TreeLaw:
        eligible = Eligible(self.rightmost, self.self_siblings, self.held_out, self.split_seed)
        return TreeLaw(
            self.grammar, self.head, self.relations, self.first, eligible, self.test_share, self.max_length
        )

    def _check_documents(self, docs: Documents) -> TreeDocuments:
        if not isinstance(docs, TreeDocuments):
            raise TypeError(f"documents of this task are TreeDocuments, got {type(docs).__name__}.")
        if docs.tokens.shape[1] > self.n_ctx:
            raise ValueError(
                f"documents of this task have at most {self.n_ctx} tokens, got {docs.tokens.shape[1]}."
            )
        return docs


@lru_cache(maxsize=16)
def _grammar(
    seed: int,
    n_terminals: int,
    n_nonterminals: int,
    max_children: int,
    max_rules: int,
    max_depth: int,
    terminal_factor: float | None,
) -> Grammar:
    return Grammar.draw(
        seed,
        n_terminals=n_terminals,
        n_nonterminals=n_nonterminals,
        max_children=max_children,
        max_rules=max_rules,
        max_depth=max_depth,
        terminal_factor=terminal_factor,
    )
