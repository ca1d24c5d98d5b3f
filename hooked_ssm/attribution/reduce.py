"""Sums of products over all but some named axes."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from hooked_ssm.patching.names import POSITIONS, axes_of, axis_dims, position_dim


class Parts:
    """Into which parts the axes asked for divide what a hook carries.

    axes: any that the hook declares. "pos" is the axis of positions (for a matrix, of those that read),
        "head" groups of channels where no axis is called that, "channel" the channels whatever their name.
    groups: for some axes, in how many parts of neighbouring entries.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        shape: Sequence[int],
        axes: Sequence[str],
        groups: Mapping[str, int] | None = None,
    ):
        point, groups = model.hook_dict[name], groups or {}
        declared = axes_of(name, point, len(shape))
        at_pos = position_dim(declared, point, name) if "pos" in axes and "pos" not in declared else None
        named = [declared[at_pos] if axis == "pos" and at_pos is not None else axis for axis in axes]
        self.dims, heads = axis_dims(declared, named, getattr(model.cfg, "n_heads", 1), name)
        self.axes = tuple(axes)
        self.counts = [groups.get(axis, count) for axis, count in zip(axes, heads, strict=True)]
        self.ndim = len(shape)
        for axis, dim, count in zip(axes, self.dims, self.counts, strict=True):
            if count < 0 or (axis in groups and count < 1) or count > shape[dim]:
                raise ValueError(f"axis {axis!r} of {name!r} has {shape[dim]} entries, got {count} groups.")
        self.sizes = [count or shape[dim] for dim, count in zip(self.dims, self.counts, strict=True)]

    def sum(self, product: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """[doc, *axes], in the order asked for."""
        for dim, count in zip(self.dims, self.counts, strict=True):
            if count:
                pieces = [piece.sum(dim, keepdim=True) for piece in self._pieces(product, dim, count)]
                product = torch.cat(pieces, dim)
        rest = [dim for dim in range(1, self.ndim) if dim not in self.dims]
        summed = product.sum(rest) if rest else product
        kept = sorted(self.dims)
        return summed.permute(0, *(1 + kept.index(dim) for dim in self.dims))

    @staticmethod
    def _pieces(tensor: Tensor, dim: int, count: int) -> list[Tensor]:
        size = tensor.shape[dim]
        cuts = [size * i // count for i in range(count + 1)]
        return [tensor.narrow(dim, a, b - a) for a, b in itertools.pairwise(cuts)]

    def masked(self, tensor: Shaped[Tensor, "..."], index: Sequence[int]) -> Shaped[Tensor, "..."]:
        """One part of a tensor, with zeros elsewhere."""
        out, at = torch.zeros_like(tensor), self._at(tensor.shape, index)
        out[at] = tensor[at]
        return out

    def _at(self, shape: Sequence[int], index: Sequence[int]) -> tuple[slice, ...]:
        at = [slice(None)] * self.ndim
        for dim, count, i in zip(self.dims, self.counts, index, strict=True):
            size = shape[dim]
            at[dim] = slice(size * i // count, size * (i + 1) // count) if count else slice(i, i + 1)
        return tuple(at)


def over_positions(axes: Sequence[str]) -> bool:
    """Whether positions are told apart."""
    return any(axis in POSITIONS for axis in axes)
