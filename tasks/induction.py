"""Induction: random tokens, a stretch of which comes again; say what follows each of its tokens.

    BOS  x1 x2 ... xn  EOS  xa xb xc ... xz        xa .. xz are n_repeated neighbours among the n

[A][B] ... [A] -> [B], the pattern that induction heads complete: Olsson et al. (2022), arXiv:2209.11895,
who measure it, as TransformerLens does, on random tokens repeated once. Each token of the stretch but the
last is labelled with the next one. The answer and the named positions are those of the stretch's first
token, which nothing but its own occurrence in the body explains; of a later one, its predecessors tell, too.

- n_repeated = 2 is the pattern by itself: a body, A, B.
- n_repeated = length is the published sequence, all of it repeated. The stretch then always begins at the
  first token, and a model can solve the task by copying from a fixed distance (see the heuristics).
- In between, the stretch begins at any of length - n_repeated + 1 places, all equally likely.

What differs from the published test: the tokens of a body are all different, drawn uniformly without
replacement, so that what follows A is certain; and the body ends with EOS, the divider. There is nothing to
hold out, since no two tokens belong together for longer than a document: the splits are independent streams
of one law.

Token ids: PAD 0, BOS 1, EOS 2, then the tokens.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tasks import rules, sampling
from tasks.corruption import absent_token, original_token
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


@dataclass(frozen=True)
class Induction(Task, name="induction"):
    """`length` of n_tokens tokens, n_repeated of them once more."""

    n_tokens: int = 4096
    length: int = 32
    n_repeated: int = 16

    def __post_init__(self):
        check_count("n_tokens", self.n_tokens, least=2)
        check_count("length", self.length, least=2)
        check_count("n_repeated", self.n_repeated, least=2)
        if not self.n_repeated <= self.length <= self.n_tokens:
            raise ValueError(
                f"length must be at least n_repeated and at most n_tokens, since no token comes twice in a "
                f"body: got length={self.length}, n_repeated={self.n_repeated}, n_tokens={self.n_tokens}."
            )

    @property
    def d_vocab(self) -> int:
        return FIRST_CONTENT_TOKEN + self.n_tokens

    @property
    def n_ctx(self) -> int:
        return 2 + self.length + self.n_repeated

    @property
    def solving_rule(self) -> str:
        return "induction"

    def token_name(self, token: int) -> str:
        """x0, x1, ... for the tokens."""
        return super().token_name(token) if token < FIRST_CONTENT_TOKEN else f"x{token - FIRST_CONTENT_TOKEN}"

    def sample(
        self, n: int, generator: torch.Generator | int | None = None, split: str = "train"
    ) -> Documents:
        check_count("n", n, least=1)
        check_choice("split", split, SPLITS)
        generator = sampling.as_generator(generator, purpose=split)

        tokens = torch.empty((n, self.n_ctx), dtype=torch.int64)
        key = torch.empty(n, dtype=torch.int64)
        for some, starts in zip(tokens.split(sampling.CHUNK), key.split(sampling.CHUNK), strict=True):
            self._write_documents(some, starts, generator)

        divider = torch.full_like(key, 1 + self.length)
        query = divider + 1
        labels = torch.full_like(tokens, IGNORE)
        labels[:, 2 + self.length : -1] = tokens[:, 3 + self.length :]
        positions = {
            "query_item_orig": key,
            "target_item_orig": key + 1,
            "divider": divider,
            "query_item": query,
            "target_item": query + 1,
            "key": key,
            "value": key + 1,
            "query": query,
        }
        return Documents(tokens, tokens[:, 3 + self.length].clone(), query, labels, positions)

    def corrupt(
        self,
        docs: Documents,
        site: str,
        generator: torch.Generator | int | None = None,
        procedure: str = "unambiguous",
    ) -> Documents:
        """The documents with one token changed, at the named position `site` of each.

        "unambiguous" puts, uniformly, a token that is nowhere else in the document: then the query matches
        nothing (sites "key" and "query"), or something else follows its match (site "value").

        "original": no procedure is published for this task. It draws as the published one for associative
        recall does, any token but the old one, which may repeat another of the body.
        """
        check_length(docs, self.n_ctx)
        check_choice("site", site, self.sites)
        check_choice("procedure", procedure, PROCEDURES)
        generator = sampling.as_generator(generator, purpose="corrupt")

        where = docs.positions[site][:, None]
        if procedure == "unambiguous":
            new = absent_token(docs.tokens, FIRST_CONTENT_TOKEN, self.n_tokens, generator, "token")
        else:
            old = docs.tokens.gather(1, where).squeeze(1)
            new = original_token(old, FIRST_CONTENT_TOKEN, self.n_tokens, generator)
        return replace(docs, tokens=docs.tokens.scatter(1, where, new[:, None]))

    def heuristics(self, docs: Documents) -> dict[str, Float[Tensor, " batch"]]:
        """For each simple rule, the probability that it gives the right answer to each document.

        The candidates are the tokens of the body at places where an answer can be: neither the first, nor
        so late that the stretch would not fit.

        - `uniform_vocabulary`, `uniform_tokens`, `uniform_candidates`: a uniform guess among all token ids,
          the tokens of the body, the candidates;
        - `first_candidate`, `last_candidate`: the first, the last of those. Each is a copy from a fixed
          distance, and no fixed distance does better;
        - `induction`: the token after the query's occurrence in the body (the rule that solves the task);
        - `reverse_induction`: the token before it.
        """
        check_length(docs, self.n_ctx)
        body = rules.between(docs, 1, self.length)
        first, last = 2, 2 + self.length - self.n_repeated
        match = rules.last_place(rules.occurrences(docs, "query_item", body))
        return {
            "uniform_vocabulary": rules.says_any_token(docs, self.d_vocab),
            "uniform_tokens": rules.says_one_of(docs, body),
            "uniform_candidates": rules.says_one_of(docs, rules.between(docs, first, last)),
            "first_candidate": rules.says(docs, torch.full_like(docs.answer, first)),
            "last_candidate": rules.says(docs, torch.full_like(docs.answer, last)),
            "induction": rules.says(docs, rules.beside(match, 1)),
            "reverse_induction": rules.says(docs, rules.beside(match, -1)),
        }

    def _write_documents(
        self, tokens: Int[Tensor, "batch pos"], key: Int[Tensor, " batch"], generator: torch.Generator
    ) -> None:
        """Fill in the tokens of some documents, and where the stretch of each begins in its body."""
        n = len(tokens)
        body = FIRST_CONTENT_TOKEN + sampling.ordered_subsets(n, self.n_tokens, self.length, generator)
        key.random_(1, 2 + self.length - self.n_repeated, generator=generator)
        tokens[:, 0] = BOS
        tokens[:, 1 : 1 + self.length] = body
        tokens[:, 1 + self.length] = EOS
        tokens[:, 2 + self.length :] = body.gather(1, key[:, None] - 1 + torch.arange(self.n_repeated))
