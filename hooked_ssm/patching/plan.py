"""The cells of a sweep: which part of which hook each of them replaces."""

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Shaped
from torch import Tensor

from hooked_ssm.patching.names import (
    axes_of,
    axis_dims,
    cached,
    check_groups,
    hook_names,
    layer_of,
    position_dim,
)
from hooked_ssm.patching.rows import Cell, Part


def plans_of(
    model: Any, cache: Any, activation_name: str, axes: list[str], groups: Mapping[str, int]
) -> dict[int | None, "Plan"]:
    """The plan of every layer that has the hook, or of the one hook if there is no axis of layers."""
    if "layer" in axes:
        names = hook_names(model, activation_name, list(range(model.cfg.n_layers)))
    else:
        name = hook_names(model, activation_name, [None])[None]
        names = {layer_of(name): name}
    return {
        layer: Plan(model, name, cached(cache, name, model), axes, groups) for layer, name in names.items()
    }


class Plan:
    """The hook of one layer: what its axes are and how many cells they make."""

    def __init__(
        self, model: Any, name: str, clean: Shaped[Tensor, "..."], axes: list[str], groups: Mapping[str, int]
    ):
        check_groups(groups)
        self.name, self.clean, self.axes = name, clean, axes
        point = model.hook_dict[name]
        declared = axes_of(name, point, clean.ndim)
        self.pos_dim = position_dim(declared, point, name)
        self.partial = declared[:2] == ["batch", "pos"]
        own = [axis for axis in axes if axis != "layer"]
        dims, by_head = axis_dims(declared, own, model.cfg.n_heads, name)
        self.dims = dict(zip(own, dims, strict=True))
        self.counts = dict(zip(own, by_head, strict=True)) | {a: groups[a] for a in own if a in groups}
        self.sizes = {axis: self.counts[axis] or clean.shape[dim] for axis, dim in self.dims.items()}
        for axis, dim in self.dims.items():
            if self.sizes[axis] > clean.shape[dim]:
                raise ValueError(
                    f"axis {axis!r} of {name!r} has {clean.shape[dim]} entries, not enough for "
                    f"{self.sizes[axis]} groups."
                )

    def has(self, row: tuple[int, ...]) -> bool:
        return all(i < self.sizes[a] for a, i in zip(self.axes, row, strict=True) if a != "layer")

    def cell(self, row: tuple[int, ...]) -> Cell:
        parts: list[Part] = [slice(None)] * self.clean.ndim
        at: Any = None
        for axis, i in zip(self.axes, row, strict=True):
            if axis == "layer":
                continue
            dim, size = self.dims[axis], self.clean.shape[self.dims[axis]]
            count = self.counts[axis]
            span = slice(size * i // count, size * (i + 1) // count) if count else i
            if dim != self.pos_dim:
                parts[dim] = span
            elif isinstance(span, int):
                at = span
            else:
                at = torch.zeros(len(self.clean), size, dtype=torch.bool)
                at[:, span] = True
        rest = [part for dim, part in enumerate(parts) if dim not in (0, self.pos_dim)]
        return Cell(at, tuple(rest))


def all_cells(axes: list[str], n_layers: int, plan: Mapping[Any, Plan]) -> pd.DataFrame:
    """Every combination of indices, the last axis fastest. Layers that differ have the largest's axes."""
    sizes = [n_layers if a == "layer" else max(each.sizes[a] for each in plan.values()) for a in axes]
    return pd.DataFrame(list(itertools.product(*map(range, sizes))), columns=axes)


def check_rows(
    rows: list[tuple[int, ...]], axes: list[str], plan: Mapping[Any, Plan], n_layers: int, *, given: bool
) -> None:
    """Raises ValueError for indices out of range, and for layers asked for by name that have no such hook."""
    for place, axis in enumerate(axes):
        top = n_layers if axis == "layer" else max(each.sizes[axis] for each in plan.values())
        wrong = [row[place] for row in rows if not 0 <= row[place] < top]
        if wrong:
            raise ValueError(f"index {axis!r} must lie in 0..{top - 1}, got {wrong[0]}.")
    if given and "layer" in axes:
        missing = sorted({row[axes.index("layer")] for row in rows} - set(plan))
        if missing:
            raise ValueError(f"layers {missing} have no such hook; these have: {sorted(plan)}.")
