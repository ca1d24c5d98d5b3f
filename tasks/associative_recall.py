"""Associative recall: key-value pairs, then one of the keys; say its value.

    BOS  k1 v1  k2 v2  ...  kn vn  EOS  q a  EOS          n pairs, 5 + 2n tokens

As in Arora, Rathi, Roashan Selvam, Csordás, Jurafsky & Potts (2025), arXiv:2505.15105, whose setting the
defaults are (37 tokens). Keys are drawn uniformly without replacement, values likewise, and the queried pair
uniformly. With query="value" the query is the value of the pair and the answer its key, which then comes
before its cue. The EOS after the body is the divider.

Token ids: PAD 0, BOS 1, EOS 2, then the keys, then the values, so d_vocab = 3 + n_keys + n_values. The
original generator reports one more (8196 for 8195 ids), the length of a table that also names the label
-100; that id never occurs.

Two settings of ours, which at their defaults change nothing:

- n_queries > 1 appends queries of further pairs, `q1 a1 q2 a2 ...`, all of them in the labels. The answer
  and the named positions are those of the first.
- held_out > 0 keeps about that share of all (key, value) pairs, chosen by a hash, out of training. A
  training document is uniform among the documents without a held-out pair; a test document with its first
  query is uniform among those that query a held-out pair first. Its other pairs may be of either sort.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tasks import rules, sampling
from tasks.corruption import absent_token, original_token
from tasks.documents import IGNORE, Documents
from tasks.pairs import PairLaw, swap_first_with
from tasks.task import (
    BOS,
    EOS,
    FIRST_CONTENT_TOKEN,
    PROCEDURES,
    SPLITS,
    Task,
    check_choice,
    check_count,
    check_length,
)


@dataclass(frozen=True)
class AssociativeRecall(Task, name="associative_recall"):
    """n_pairs of n_keys keys and n_values values; `query` says which half of a pair is the query."""

    n_keys: int = 4096
    n_values: int = 4096
    n_pairs: int = 16
    n_queries: int = 1
    query: str = "key"
    held_out: float = 0.0
    split_seed: int = 0

    def __post_init__(self):
        check_count("n_queries", self.n_queries, least=1)
        check_choice("query", self.query, ("key", "value"))
        self._pair_law.check()
        if self.n_queries > self.n_pairs:
            raise ValueError(
                f"n_queries must be at most n_pairs, since no pair is queried twice: got "
                f"n_queries={self.n_queries}, n_pairs={self.n_pairs}."
            )

    @property
    def d_vocab(self) -> int:
        return FIRST_CONTENT_TOKEN + self.n_keys + self.n_values

    @property
    def n_ctx(self) -> int:
        return 3 + 2 * self.n_pairs + 2 * self.n_queries

    @property
    def first_key(self) -> int:
        """The lowest key id; the keys are first_key .. first_key + n_keys - 1."""
        return FIRST_CONTENT_TOKEN

    @property
    def first_value(self) -> int:
        """The lowest value id; the values are first_value .. d_vocab - 1."""
        return FIRST_CONTENT_TOKEN + self.n_keys

    @property
    def solving_rule(self) -> str:
        return "induction" if self.query == "key" else "reverse_induction"

    def token_name(self, token: int) -> str:
        """k0, k1, ... for keys, v0, v1, ... for values."""
        if token < self.first_key:
            return super().token_name(token)
        return f"k{token - self.first_key}" if token < self.first_value else f"v{token - self.first_value}"

    def sample(
        self, n: int, generator: torch.Generator | int | None = None, split: str = "train"
    ) -> Documents:
        check_count("n", n, least=1)
        check_choice("split", split, SPLITS)
        generator = sampling.as_generator(generator, purpose=split)

        tokens = torch.empty((n, self.n_ctx), dtype=torch.int64)
        asked = torch.empty(n, dtype=torch.int64)
        # in chunks, so that intermediate results stay in the cache and memory is touched once
        for some, chosen in zip(tokens.split(sampling.CHUNK), asked.split(sampling.CHUNK), strict=True):
            self._write_documents(some, chosen, generator, split)

        query = 2 + 2 * self.n_pairs
        labels = torch.full_like(tokens, IGNORE)
        labels[:, query:-1:2] = tokens[:, query + 1 : -1 : 2]
        key, value = 1 + 2 * asked, 2 + 2 * asked
        cue, target = (key, value) if self.query == "key" else (value, key)
        query_pos = torch.full_like(asked, query)
        positions = {
            "query_item_orig": cue,
            "target_item_orig": target,
            "divider": query_pos - 1,
            "query_item": query_pos,
            "target_item": query_pos + 1,
            "key": cue,
            "value": target,
            "query": query_pos,
        }
        return Documents(tokens, tokens[:, query + 1].clone(), query_pos, labels, positions)

    def corrupt(
        self,
        docs: Documents,
        site: str,
        generator: torch.Generator | int | None = None,
        procedure: str = "unambiguous",
    ) -> Documents:
        """The documents with one token changed, at the named position `site` of each.

        "unambiguous" puts, uniformly, a token of the same kind (key for key, value for value) that is nowhere
        else in the document: then the query matches nothing (sites "key" and "query"), or the answer is no
        longer in the body (site "value").

        "original" draws as the published interchange evaluation does: a token of the QUERY's kind, r uniform
        over that range less its last id, plus one where r >= the token it replaces. So in a task queried by
        key the value is replaced by a key, never the last one; and a new key may equal another of the body.
        (There, the query itself is no site.)
        """
        check_length(docs, self.n_ctx)
        check_choice("site", site, self.sites)
        check_choice("procedure", procedure, PROCEDURES)
        generator = sampling.as_generator(generator, purpose="corrupt")

        where = docs.positions[site][:, None]
        if procedure == "unambiguous":
            at_answer = site in ("value", "target_item_orig")
            kind = "value" if at_answer == (self.query == "key") else "key"
            new = absent_token(docs.tokens, *self._range(kind), generator, kind)
        else:
            new = original_token(docs.tokens.gather(1, where).squeeze(1), *self._range(self.query), generator)
        return replace(docs, tokens=docs.tokens.scatter(1, where, new[:, None]))

    def heuristics(self, docs: Documents) -> dict[str, Float[Tensor, " batch"]]:
        """For each simple rule, the probability that it gives the right answer to each document.

        - `uniform_vocabulary`, `uniform_tokens`, `uniform_candidates`: a uniform guess among all token ids,
          the tokens of the body, the tokens of the body that are of the answer's kind;
        - `first_candidate`, `last_candidate`: the first, the last of those of the answer's kind;
        - `induction`: the token after the last occurrence of the query in the body (the rule that solves
          query="key");
        - `reverse_induction`: the token before it (the rule that solves query="value").
        """
        check_length(docs, self.n_ctx)
        body = rules.between(docs, 1, 2 * self.n_pairs)
        values = docs.tokens >= self.first_value
        candidates = body & (values if self.query == "key" else ~values)
        match = rules.last_place(rules.occurrences(docs, "query_item", body))
        return {
            "uniform_vocabulary": rules.says_any_token(docs, self.d_vocab),
            "uniform_tokens": rules.says_one_of(docs, body),
            "uniform_candidates": rules.says_one_of(docs, candidates),
            "first_candidate": rules.says(docs, rules.first_place(candidates)),
            "last_candidate": rules.says(docs, rules.last_place(candidates)),
            "induction": rules.says(docs, rules.beside(match, 1)),
            "reverse_induction": rules.says(docs, rules.beside(match, -1)),
        }

    def _write_documents(
        self,
        tokens: Int[Tensor, "batch pos"],
        asked: Int[Tensor, " batch"],
        generator: torch.Generator,
        split: str,
    ) -> None:
        """Fill in the tokens of some documents, and the number of the pair that each asks for first."""
        pairs = self._pair_law.sample(len(tokens), generator, split)
        queried = sampling.ordered_subsets(len(tokens), self.n_pairs, self.n_queries, generator)
        asked.copy_(queried[:, 0])
        if self.held_out and split == "test":
            pairs = swap_first_with(pairs, asked)  # the held-out pair was drawn first

        pairs = pairs + torch.tensor([self.first_key, self.first_value])
        queries = pairs.gather(1, queried[:, :, None].expand(-1, -1, 2))
        divider = 1 + 2 * self.n_pairs
        tokens[:, 0] = BOS
        tokens[:, 1:divider] = pairs.flatten(1)
        tokens[:, divider] = EOS
        tokens[:, divider + 1 : -1] = (queries if self.query == "key" else queries.flip(-1)).flatten(1)
        tokens[:, -1] = EOS

    @property
    def _pair_law(self) -> PairLaw:
        return PairLaw(self.n_keys, self.n_values, self.n_pairs, self.held_out, self.split_seed)

    def _range(self, kind: str) -> tuple[int, int]:
        return (self.first_key, self.n_keys) if kind == "key" else (self.first_value, self.n_values)
