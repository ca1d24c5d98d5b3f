"""Multi-query associative recall: key-value pairs, then each key once more, at a place of its own.

    BOS  k1 v1  k2 v2  ...  kn vn  EOS  k2 .  .  .  k1 .  .  .        dots are filler tokens

As in Arora, Eyuboglu, Timalsina, Johnson, Poli, Zou, Rudra & Ré (2023), arXiv:2312.04927, after the authors'
generator (`multiquery_ar` of HazyResearch/zoology), whose setting the defaults are. Keys are drawn uniformly
without replacement, values likewise. Behind the divider the keys come back at even offsets 0, 2, 4, ...: the
pairs, from the first to the last, draw theirs one after the other, offset 2i with a probability proportional
to (i + 1)^(power - 1) among the offsets still free. So gaps follow a power law, as those between repeated
bigrams of a text do, and earlier pairs tend to come back earlier; power=1 is uniform. The other places are
filled with uniform random keys and values, or with PAD.

Each repeated key is labelled with its value, which is not fed in: what follows a query is filler. `answer`
and the named positions are those of one query a document, chosen uniformly. There is no `target_item`.

Token ids are those of `AssociativeRecall`. What differs from the original:

- BOS and the divider (EOS) are ours. `length` counts the tokens without them: pairs, queries and filler.
- A filler token that would repeat the named query's key and value, one after the other, is drawn again. So
  the answer follows from the pair alone. Filler may be a key of the document, without a label, as there.
- held_out > 0 keeps key-value pairs out of training, as `AssociativeRecall` does. In a test document the
  named query asks for a held-out pair.
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
    PAD,
    PROCEDURES,
    SPLITS,
    Task,
    check_choice,
    check_count,
    check_length,
    check_number,
)


@dataclass(frozen=True)
class MultiQueryAssociativeRecall(Task, name="multi_query_associative_recall"):
    """n_pairs of n_keys keys and n_values values, and as many queries, in `length` tokens."""

    n_keys: int = 4095
    n_values: int = 4096
    n_pairs: int = 8
    length: int = 64
    power: float = 0.01
    random_filler: bool = True
    held_out: float = 0.0
    split_seed: int = 0

    def __post_init__(self):
        self._pair_law.check()
        check_count("length", self.length, least=4)
        if self.length % 2 or self.length < 4 * self.n_pairs:
            raise ValueError(
                f"length must be even and at least 4 n_pairs, two for a pair and two for its query: got "
                f"length={self.length}, n_pairs={self.n_pairs}."
            )
        check_number("power", self.power)
        if not 0 <= self.power <= 1:
            raise ValueError(f"power must be in [0, 1], got {self.power}.")
        if not isinstance(self.random_filler, bool):
            raise TypeError(f"random_filler must be True or False, got {self.random_filler!r}.")

    @property
    def d_vocab(self) -> int:
        return FIRST_CONTENT_TOKEN + self.n_keys + self.n_values

    @property
    def n_ctx(self) -> int:
        return self.length + 2

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
        return "induction"

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
        queries = torch.empty((n, self.n_pairs), dtype=torch.int64)
        size = sampling.CHUNK
        for some in zip(tokens.split(size), asked.split(size), queries.split(size), strict=True):
            self._write_documents(*some, generator, split)

        labels = torch.full_like(tokens, IGNORE)
        labels.scatter_(1, queries, tokens[:, 2 : 2 + 2 * self.n_pairs : 2])
        key, value = 1 + 2 * asked, 2 + 2 * asked
        query = queries.gather(1, asked[:, None])[:, 0]
        positions = {
            "query_item_orig": key,
            "target_item_orig": value,
            "divider": torch.full_like(asked, self._divider),
            "query_item": query,
            "key": key,
            "value": value,
            "query": query,
        }
        answer = tokens.gather(1, value[:, None])[:, 0]
        return Documents(tokens, answer, query, labels, positions)

    def corrupt(
        self,
        docs: Documents,
        site: str,
        generator: torch.Generator | int | None = None,
        procedure: str = "unambiguous",
    ) -> Documents:
        """The documents with one token changed, at the named position `site` of each.

        "unambiguous" puts, uniformly, a token of the same kind (key for key, value for value) that is nowhere
        else in the document: then the query matches no pair (sites "key" and "query"), or the answer is no
        longer beside its key (site "value").

        "original": no procedure is published for this task. It draws as the published one for associative
        recall does: any key but the old one, also where a value is replaced (then never the last key).
        """
        check_length(docs, self.n_ctx)
        check_choice("site", site, self.sites)
        check_choice("procedure", procedure, PROCEDURES)
        generator = sampling.as_generator(generator, purpose="corrupt")

        where = docs.positions[site][:, None]
        if procedure == "original":
            new = original_token(
                docs.tokens.gather(1, where).squeeze(1), self.first_key, self.n_keys, generator
            )
        elif site in ("value", "target_item_orig"):
            new = absent_token(docs.tokens, self.first_value, self.n_values, generator, "value")
        else:
            new = absent_token(docs.tokens, self.first_key, self.n_keys, generator, "key")
        return replace(docs, tokens=docs.tokens.scatter(1, where, new[:, None]))

    def heuristics(self, docs: Documents) -> dict[str, Float[Tensor, " batch"]]:
        """For each simple rule, the probability that it gives the right answer to each document.

        - `uniform_vocabulary`, `uniform_tokens`, `uniform_candidates`: a uniform guess among all token ids,
          the tokens of the pairs, the values of the pairs;
        - `first_candidate`, `last_candidate`: the first, the last of those values;
        - `in_order`: the value of the first pair to the first query, of the second to the second, and so on,
          which the power law favours;
        - `induction`: the token after the query's occurrence among the pairs (the rule that solves the task);
        - `reverse_induction`: the token before it.
        """
        check_length(docs, self.n_ctx)
        body = rules.between(docs, 1, 2 * self.n_pairs)
        candidates = body & (docs.tokens >= self.first_value)
        match = rules.last_place(rules.occurrences(docs, "query_item", body))
        index = torch.arange(self.n_ctx, device=docs.tokens.device)
        earlier = (docs.labels != IGNORE) & (index < docs.positions["query_item"][:, None])
        return {
            "uniform_vocabulary": rules.says_any_token(docs, self.d_vocab),
            "uniform_tokens": rules.says_one_of(docs, body),
            "uniform_candidates": rules.says_one_of(docs, candidates),
            "first_candidate": rules.says(docs, rules.first_place(candidates)),
            "last_candidate": rules.says(docs, rules.last_place(candidates)),
            "in_order": rules.says(docs, 2 + 2 * earlier.sum(1)),
            "induction": rules.says(docs, rules.beside(match, 1)),
            "reverse_induction": rules.says(docs, rules.beside(match, -1)),
        }

    def _write_documents(
        self,
        tokens: Int[Tensor, "batch pos"],
        asked: Int[Tensor, " batch"],
        queries: Int[Tensor, "batch n_pairs"],
        generator: torch.Generator,
        split: str,
    ) -> None:
        """Fill in, for some documents, the tokens, which pair is asked for, and where each is queried."""
        pairs = self._pair_law.sample(len(tokens), generator, split)
        asked.random_(0, self.n_pairs, generator=generator)
        if self.held_out and split == "test":
            pairs = swap_first_with(pairs, asked)  # the held-out pair was drawn first
        pairs = pairs + torch.tensor([self.first_key, self.first_value])
        offsets = 2 * sampling.weighted_subsets(len(tokens), self._weights, self.n_pairs, generator)
        queries.copy_(self._divider + 1 + offsets)

        tokens[:, 0] = BOS
        tokens[:, 1 : self._divider] = pairs.flatten(1)
        tokens[:, self._divider] = EOS
        rest = tokens[:, self._divider + 1 :]
        if self.random_filler:
            rest.random_(FIRST_CONTENT_TOKEN, self.d_vocab, generator=generator)
            rest.scatter_(1, offsets, pairs[..., 0])
            self._redraw_repeats(rest, pairs[torch.arange(len(asked)), asked], generator)
        else:
            rest.fill_(PAD)
            rest.scatter_(1, offsets, pairs[..., 0])

    def _redraw_repeats(
        self, rest: Int[Tensor, "batch pos"], pair: Int[Tensor, "batch 2"], generator: torch.Generator
    ) -> None:
        """Draw the values that complete the pair again, in place, until there are none; they are filler."""
        key, value = pair.split(1, dim=1)
        while bool((repeated := (rest[:, :-1] == key) & (rest[:, 1:] == value)).any()):
            fresh = torch.randint(
                FIRST_CONTENT_TOKEN, self.d_vocab, (int(repeated.sum()),), generator=generator
            )
            rest[:, 1:][repeated] = fresh

    @property
    def _pair_law(self) -> PairLaw:
        return PairLaw(self.n_keys, self.n_values, self.n_pairs, self.held_out, self.split_seed)

    @property
    def _divider(self) -> int:
        return 1 + 2 * self.n_pairs

    @property
    def _weights(self) -> Float[Tensor, " n_offsets"]:
        n_offsets = self.length // 2 - self.n_pairs
        return torch.arange(1, n_offsets + 1, dtype=torch.float64) ** (self.power - 1)
