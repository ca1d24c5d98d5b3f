"""The law of a document's key-value pairs, with or without a held-out set of pairs.

Without one: keys a uniform ordered subset, values another. With one, that law conditioned, exactly: on no
pair being held out (train), or on the first pair being held out (test).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tasks import sampling
from tasks.held_out import is_held_out
from tasks.task import check_count, check_fraction

SMALL_TABLE = 1 << 16  # key-value combinations few enough to count the held-out ones exactly
LEAST_RATE = 1e-4  # of tries that give a training document: 10,000 tries take some 10 ms


@dataclass(frozen=True)
class PairLaw:
    """n_pairs pairs of a key number below n_keys and a value number below n_values, none repeated."""

    n_keys: int
    n_values: int
    n_pairs: int
    held_out: float
    split_seed: int

    def check(self) -> None:
        """TypeError or ValueError unless the settings are possible ones.

        A split that is seen to be empty, or all but impossible to draw from, is refused too.
        """
        for name in ("n_keys", "n_values", "n_pairs"):
            check_count(name, getattr(self, name), least=1)
        if self.n_pairs > min(self.n_keys, self.n_values):
            raise ValueError(
                f"n_pairs must be at most n_keys and n_values, since none repeats in a document: got "
                f"n_pairs={self.n_pairs}, n_keys={self.n_keys}, n_values={self.n_values}."
            )
        if isinstance(self.split_seed, bool) or not isinstance(self.split_seed, int):
            raise TypeError(f"split_seed must be an integer, got {self.split_seed!r}.")
        check_fraction("held_out", self.held_out)
        setting = f"held_out={self.held_out} with split_seed={self.split_seed}"
        if self.held_out and self.n_keys * self.n_values <= SMALL_TABLE:
            keys, values = torch.arange(self.n_keys), torch.arange(self.n_values)
            n_held = int(self._is_held_out(torch.cartesian_prod(keys, values)).sum())
            if n_held in (0, self.n_keys * self.n_values):
                raise ValueError(
                    f"{setting} holds out {n_held} of {self.n_keys * self.n_values} pairs, so that one split "
                    f"is empty; change either."
                )
        rate = max(self._distinct_rate, self._follow_rate("train"))
        if rate < LEAST_RATE:
            raise ValueError(
                f"{setting} makes training documents of {self.n_pairs} pairs too rare to find (about "
                f"{rate:.0e} of what is tried); hold out less, take fewer pairs, or more than "
                f"n_keys={self.n_keys} and n_values={self.n_values}."
            )

    def sample(self, n: int, generator: torch.Generator, split: str) -> Int[Tensor, "n n_pairs 2"]:
        """(key number, value number) of each pair of n documents; of a held-out test pair, in first place."""
        if not self.held_out:
            return self._unrestricted(n, generator)
        what = f"documents of the {split} split"
        # Either documents whose pairs do not repeat, until the pairs follow the split; or single pairs that
        # follow the split, until they do not repeat. The law is the same, the number of tries is not.
        follow, distinct = self._follow_rate(split), self._distinct_rate
        if follow > distinct:
            return sampling.first_accepted(
                n,
                lambda m: self._unrestricted(m, generator),
                lambda pairs: self._follow(pairs, split),
                follow,
                what,
            )
        return sampling.first_accepted(
            n, lambda m: self._independent(m, generator, split), self._none_repeats, distinct, what
        )

    @property
    def _distinct_rate(self) -> float:
        keys = sampling.distinct_rate(self.n_keys, self.n_pairs)
        return keys * sampling.distinct_rate(self.n_values, self.n_pairs)

    def _follow_rate(self, split: str) -> float:
        return self.held_out if split == "test" else (1 - self.held_out) ** self.n_pairs

    def _follow(self, pairs: Int[Tensor, "rows n_pairs 2"], split: str) -> Bool[Tensor, " rows"]:
        return self._is_held_out(pairs[:, 0]) if split == "test" else ~self._is_held_out(pairs).any(1)

    @staticmethod
    def _none_repeats(pairs: Int[Tensor, "rows n_pairs 2"]) -> Bool[Tensor, " rows"]:
        return sampling.are_distinct(pairs[..., 0]) & sampling.are_distinct(pairs[..., 1])

    def _unrestricted(self, n: int, generator: torch.Generator) -> Int[Tensor, "n n_pairs 2"]:
        if self.n_keys == self.n_values:  # one search for both: on small batches half the time
            both = sampling.ordered_subsets(2 * n, self.n_keys, self.n_pairs, generator)
            return torch.stack(both.chunk(2), -1)
        keys = sampling.ordered_subsets(n, self.n_keys, self.n_pairs, generator)
        values = sampling.ordered_subsets(n, self.n_values, self.n_pairs, generator)
        return torch.stack((keys, values), -1)

    def _independent(self, n: int, generator: torch.Generator, split: str) -> Int[Tensor, "n n_pairs 2"]:
        if split == "train":
            return self._single(n * self.n_pairs, generator, held_out=False).unflatten(0, (n, self.n_pairs))
        first = self._single(n, generator, held_out=True)
        others = self._uniform(n * (self.n_pairs - 1), generator)
        return torch.cat((first[:, None], others.unflatten(0, (n, self.n_pairs - 1))), 1)

    def _single(self, n: int, generator: torch.Generator, held_out: bool) -> Int[Tensor, "n 2"]:
        return sampling.first_accepted(
            n,
            lambda m: self._uniform(m, generator),
            lambda pairs: self._is_held_out(pairs) == held_out,
            self.held_out if held_out else 1 - self.held_out,
            "held-out pairs" if held_out else "pairs that are not held out",
        )

    def _uniform(self, n: int, generator: torch.Generator) -> Int[Tensor, "n 2"]:
        keys = torch.randint(self.n_keys, (n,), generator=generator)
        return torch.stack((keys, torch.randint(self.n_values, (n,), generator=generator)), -1)

    def _is_held_out(self, pairs: Int[Tensor, "*batch 2"]) -> Bool[Tensor, "*batch"]:
        return is_held_out(pairs[..., 0], pairs[..., 1], self.held_out, self.split_seed)


def swap_first_with(
    pairs: Int[Tensor, "batch n_pairs 2"], where: Int[Tensor, " batch"]
) -> Int[Tensor, "batch n_pairs 2"]:
    """The pairs with the first one and the one at `where` exchanged, document by document."""
    order = torch.arange(pairs.shape[1]).repeat(len(pairs), 1)
    order[:, 0] = where
    order.scatter_(1, where[:, None], 0)
    return pairs.gather(1, order[:, :, None].expand(-1, -1, 2))
