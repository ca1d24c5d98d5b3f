"""What a format makes of a source's config: our config, and where each of our weights comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_ssm.config import HookedSSMConfig


@dataclass(frozen=True)
class Piece:
    """One of our weights: the source's tensors that it is made of, and how (None: it is the only one)."""

    names: tuple[str, ...]
    make: Callable[..., Tensor] | None = None


@dataclass(frozen=True)
class Plan:
    """cfg: the model. weights: a `Piece` for every entry of its state dict, the source's names made uniform.

    uniform: the name that `weights` uses for a tensor of the source; None for one without meaning to us.
    free_heads: whether the mixer has no heads of its own, so that n_heads is the user's to choose.
    wide_residual: whether the source keeps its residual stream in float32, whatever its weights.
    """

    cfg: HookedSSMConfig
    weights: dict[str, Piece]
    uniform: Callable[[str], str | None]
    free_heads: bool = False
    wide_residual: bool = False


class Settings:
    """A source's config, every entry of which must be accounted for: taken, fixed, or without effect.

    defaults: what the source's own code takes where an entry is absent. Errors name the entry.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], what: str):
        self.values, self.defaults, self.what = dict(values), dict(defaults), what
        self.seen: set[str] = set()

    def take(self, name: str) -> Any:
        """The entry's value, or its default. Raises ValueError if it has neither."""
        self.seen.add(name)
        if name in self.values:
            return self.values[name]
        if name in self.defaults:
            return self.defaults[name]
        raise ValueError(f"the config of a {self.what} needs {name!r}, which is missing.")

    def size(self, name: str) -> int:
        """An entry that must be a positive whole number."""
        value = self.take(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
            raise ValueError(
                f"{name!r} of a {self.what} must be a whole number of at least 1, got {value!r}."
            )
        return int(value)

    def fixed(self, name: str, *allowed: Any) -> None:
        """An entry that a HookedSSM can honour only at these values."""
        value = self.take(name)
        if value not in allowed:
            only = " or ".join(map(repr, allowed))
            raise ValueError(
                f"{name}={value!r} of this {self.what} cannot be honoured: only {only} is supported."
            )

    def without_effect(self, *names: str) -> None:
        """Entries about training, files or speed, that change no number of a trained model."""
        self.seen.update(names)

    def finish(self) -> None:
        """Raise ValueError for entries that nothing accounts for, and that are not at their default."""
        for name in self.values.keys() - self.seen:
            if name not in self.defaults or self.values[name] != self.defaults[name]:
                raise ValueError(
                    f"{name}={self.values[name]!r} of this {self.what} is not known: it may change what "
                    "the model computes, so it is not loaded."
                )


def norm_weights(norms: list[tuple[str, str, str | None]]) -> dict[str, Piece]:
    """Of norms given as (our name, theirs, kind), the weights, and the biases of LayerNorms."""
    weights = {}
    for ours, theirs, kind in norms:
        weights[f"{ours}.w"] = Piece((f"{theirs}.weight",))
        if kind == "LN":
            weights[f"{ours}.b"] = Piece((f"{theirs}.bias",))
    return weights


def transposed(W: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_in d_out"]:
    return W.T


def joined(*parts: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Weights of one kind side by side, along the output axis."""
    return torch.cat(parts)
