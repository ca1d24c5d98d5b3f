"""Selective copying: a few tokens at random places among noise; say them in order.

    BOS  .  x1 .  .  x2 .  ...  xm .  EOS  !  !  ...  !        dots are noise, ! are m markers

As in Gu & Dao (2023), arXiv:2312.00752, section 4.1.1, after the generator of the authors' earlier work
(`copying` of state-spaces/s4, with places drawn at random). At the j-th marker xj is due; it is not fed in.
The m places are drawn uniformly without replacement, the tokens uniformly with replacement. The defaults are
the paper's: 4096 tokens of input, 16 of them to be copied, of a vocabulary of 16 with noise and marker.
BOS and the divider (EOS) are ours.

`answer` and the named positions are those of one marker a document, chosen uniformly. The query is the
marker, the value is its token in the body. Nothing in a document names that token but its rank, so the key
IS the value: both names (and `query_item_orig`, `target_item_orig`) are one position, and an intervention
there says where the token's identity is, not how it was joined to a key. There is no `target_item`.

There is nothing to hold out, since tokens and places are independent: the splits are independent streams of
one law.

Token ids: PAD 0, BOS 1, EOS 2, noise 3, marker 4, then the tokens.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tasks import rules, sampling
from tasks.corruption import original_token
from tasks.documents import IGNORE, Documents
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

NOISE, MARKER = FIRST_CONTENT_TOKEN, FIRST_CONTENT_TOKEN + 1


@dataclass(frozen=True)
class SelectiveCopying(Task, name="selective_copying"):
    """n_copied of n_tokens tokens among noise, `length` in all, then n_copied markers."""

    n_tokens: int = 14
    n_copied: int = 16
    length: int = 4096

    sites: ClassVar[tuple[str, ...]] = ("key", "query_item_orig", "value", "target_item_orig")

    def __post_init__(self):
        check_count("n_tokens", self.n_tokens, least=2)
        check_count("n_copied", self.n_copied, least=1)
        check_count("length", self.length, least=1)
        if self.n_copied > self.length:
            raise ValueError(
                f"n_copied must be at most length, since each token has a place of its own: got "
                f"n_copied={self.n_copied}, length={self.length}."
            )

    @property
    def d_vocab(self) -> int:
        return self.first_token + self.n_tokens

    @property
    def n_ctx(self) -> int:
        return 2 + self.length + self.n_copied

    @property
    def first_token(self) -> int:
        """The lowest id of a token to copy; they are first_token .. d_vocab - 1."""
        return MARKER + 1

    @property
    def solving_rule(self) -> str:
        return "in_order"

    def token_name(self, token: int) -> str:
        """A dot for noise, an exclamation mark for a marker, x0, x1, ... for the tokens to copy."""
        if token < NOISE:
            return super().token_name(token)
        return {NOISE: ".", MARKER: "!"}.get(token, f"x{token - self.first_token}")

    def sample(
        self, n: int, generator: torch.Generator | int | None = None, split: str = "train"
    ) -> Documents:
        check_count("n", n, least=1)
        check_choice("split", split, SPLITS)
        generator = sampling.as_generator(generator, purpose=split)

        tokens = torch.full((n, self.n_ctx), NOISE)
        tokens[:, 0] = BOS
        tokens[:, 1 + self.length] = EOS
        tokens[:, 2 + self.length :] = MARKER
        places = torch.empty((n, self.n_copied), dtype=torch.int64)
        copied = torch.empty((n, self.n_copied), dtype=torch.int64)
        size = sampling.CHUNK
        for some, where, what in zip(tokens.split(size), places.split(size), copied.split(size), strict=True):
            where.copy_(1 + sampling.subsets(len(some), self.length, self.n_copied, generator))
            what.random_(self.first_token, self.d_vocab, generator=generator)
            some.scatter_(1, where, what)

        asked = torch.randint(self.n_copied, (n, 1), generator=generator)
        labels = torch.full_like(tokens, IGNORE)
        labels[:, 2 + self.length :] = copied
        place, query = places.gather(1, asked)[:, 0], 2 + self.length + asked[:, 0]
        positions = {
            "query_item_orig": place,
            "target_item_orig": place,
            "divider": torch.full_like(query, 1 + self.length),
            "query_item": query,
            "key": place,
            "value": place,
            "query": query,
        }
        return Documents(tokens, copied.gather(1, asked)[:, 0], query, labels, positions)

    def corrupt(
        self,
        docs: Documents,
        site: str,
        generator: torch.Generator | int | None = None,
        procedure: str = "unambiguous",
    ) -> Documents:
        """The documents with the token that is asked for replaced by another to be copied, uniformly.

        The rank of every token stays, so that another answer is due at the query: that is unambiguous, even
        where the old answer is in the body once more. No procedure is published for this task; "original",
        any token of the kind but the old one, is the same draw. The markers, all alike, are no site.
        """
        check_length(docs, self.n_ctx)
        check_choice("site", site, self.sites)
        check_choice("procedure", procedure, PROCEDURES)
        generator = sampling.as_generator(generator, purpose="corrupt")

        where = docs.positions[site][:, None]
        old = docs.tokens.gather(1, where).squeeze(1)
        new = original_token(old, self.first_token, self.n_tokens, generator)
        return replace(docs, tokens=docs.tokens.scatter(1, where, new[:, None]))

    def heuristics(self, docs: Documents) -> dict[str, Float[Tensor, " batch"]]:
        """For each simple rule, the probability that it gives the right answer to each document.

        The candidates are the tokens of the body that are no noise.

        - `uniform_vocabulary`, `uniform_tokens`, `uniform_candidates`: a uniform guess among all token ids,
          the tokens of the body, the candidates;
        - `first_candidate`, `last_candidate`: the first, the last of those;
        - `most_frequent`: the most frequent of those, a uniform one of several;
        - `likeliest_place`: whatever is at the place where the j-th of the tokens is most often, to the j-th
          marker: what a model that cannot select, but copy from fixed distances, can do;
        - `in_order`: the j-th candidate to the j-th marker (the rule that solves the task).
        """
        check_length(docs, self.n_ctx)
        body = rules.between(docs, 1, self.length)
        candidates = body & (docs.tokens >= self.first_token)
        rank = docs.positions["query_item"] - (2 + self.length)
        is_due = candidates & (candidates.cumsum(1) == rank[:, None] + 1)
        return {
            "uniform_vocabulary": rules.says_any_token(docs, self.d_vocab),
            "uniform_tokens": rules.says_one_of(docs, body),
            "uniform_candidates": rules.says_one_of(docs, candidates),
            "first_candidate": rules.says(docs, rules.first_place(candidates)),
            "last_candidate": rules.says(docs, rules.last_place(candidates)),
            "most_frequent": self._says_most_frequent(docs),
            "likeliest_place": rules.says(docs, self._likeliest_place(rank)),
            "in_order": rules.says(docs, rules.first_place(is_due)),
        }

    def _says_most_frequent(self, docs: Documents) -> Float[Tensor, " batch"]:
        """The probability that a uniform one of the most frequent candidates is the answer."""
        body = docs.tokens[:, 1 : 1 + self.length]
        times = torch.zeros(len(docs), self.d_vocab, dtype=torch.int64, device=body.device)
        times = times.scatter_add(1, body, torch.ones_like(body))[:, self.first_token :]
        most_frequent = times == times.amax(1, keepdim=True)
        right = most_frequent.gather(1, docs.answer[:, None] - self.first_token)[:, 0]
        return right / most_frequent.sum(1)

    def _likeliest_place(self, rank: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Where the token of a rank (from 0) is most often, the first place if there are several.

        With n places and m tokens, P(j-th at x) = C(x - 1, j - 1) C(n - x, m - j) / C(n, m), which rises from
        x to x + 1 where x (m - 1) < n (j - 1).
        """
        turning = -(-self.length * rank // max(1, self.n_copied - 1))  # n (j - 1) / (m - 1), rounded up
        return turning.clamp(min=1)
