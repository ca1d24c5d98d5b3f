"""Hooks by name: which exist and fire, in which layer, and which axis of theirs is called what."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor
from transformer_lens.utilities.components_utils import get_act_name

from hooked_ssm.hooks import Hook

ALIASES = {"head_index": "head", "dest_pos": "dest", "src_pos": "src"}
POSITIONS = ("pos", "dest", "lag")
CHANNELS = ("channel", "d_inner", "d_model", "d_mlp")
BY_HEAD = ("q", "k", "v", "z", "result", "rot_q", "rot_k", "q_input", "k_input", "v_input")


def layer_of(name: str) -> int | None:
    """The layer in a hook's name, if there is one."""
    match name.split("."):
        case ["blocks", layer, *_] if layer.isdigit():
            return int(layer)
        case _:
            return None


def hook_names(model: Any, activation_name: str, layers: list[int | None]) -> dict[int | None, str]:
    """The hook's full name in each of these layers that has it. Raises if none has, or if it cannot fire."""
    names, reasons = {}, []
    for layer in layers:
        name = get_act_name(activation_name, layer)
        reason = why_silent(model, name)
        if reason is None:
            names[layer] = name
        else:
            reasons.append(reason)
    if not names:
        raise reasons[0]
    return names


def why_silent(model: Any, name: str) -> Exception | None:
    """What to raise for a hook that does not exist or cannot fire as the model is set."""
    if name not in model.hook_dict:
        near = get_close_matches(name, model.hook_dict, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "model.hook_dict has all."
        return KeyError(f"no hook named {name!r}; {hint}")
    if hasattr(model, "unavailable_hooks"):
        reason = model.unavailable_hooks().get(model.canonical_name(name))
        if reason is not None:
            return ValueError(f"{name!r} would not fire: {reason}.")
    return None


def cached(cache: Any, name: str, model: Any) -> Tensor:
    """The activation in a cache or plain dictionary, under any of the hook's names."""
    if name in cache:
        return cache[name]
    canonical = getattr(model, "hook_aliases", {}).get(name, name)
    if canonical in cache:
        return cache[canonical]
    raise KeyError(f"the clean cache does not hold {name!r}: it was not in names_filter, or did not fire.")


def axes_of(name: str, point: Any, ndim: int) -> list[str]:
    """Names of the axes of what a hook carries. Hooks that do not say follow TransformerLens's orders."""
    if isinstance(point, Hook):
        axes = point.shape.split()
        if len(axes) != ndim:
            raise ValueError(f"{name!r} is declared {axes}, but what is cached for it has {ndim} axes.")
        return axes
    last = name.rsplit("hook_", 1)[-1]
    if last in ("pattern", "attn_scores"):
        axes = ["batch", "head", "dest", "src"]
    elif last in BY_HEAD:
        axes = ["batch", "pos", "head", "d_head"]
    else:
        axes = ["batch", "pos", *(f"d{i}" for i in range(ndim - 3)), "d_model"]
    return axes[:ndim]


def axis_dims(axes: list[str], wanted: list[str], n_heads: int, name: str) -> tuple[list[int], list[int]]:
    """For every wanted axis its place in `axes`, and in how many groups its entries fall (0: one each).

    "channel" is the activation's channels whatever their axis is called. "head", where no axis is called
    that, is as many groups of channels as the model has heads.
    """
    dims, groups = [], []
    channel = next((axes.index(axis) for axis in CHANNELS if axis in axes), None)
    for axis in wanted:
        axis, count = ALIASES.get(axis, axis), 0
        if axis in axes:
            dim: int | None = axes.index(axis)
        else:
            dim = channel if axis in ("channel", "head") else None
            count = n_heads if axis == "head" else 0
        if dim is None or dim == 0:
            raise ValueError(f"{name!r} has axes {axes}, none of them {axis!r}.")
        dims.append(dim)
        groups.append(count)
    if len(set(dims)) < len(dims):
        raise ValueError(f"of the axes {wanted} of {name!r} two are the same one of {axes}.")
    return dims, groups


def position_dim(axes: list[str], point: Any, name: str) -> int:
    """Where the axis of positions is (for a matrix: of the positions that read; for a filter: of lags)."""
    declared = getattr(point, "pos_dim", None)
    for axis in POSITIONS:
        if axis in axes and (declared is None or declared % len(axes) == axes.index(axis)):
            return axes.index(axis)
    raise ValueError(f"{name!r} has its positions at axis {declared} of {axes}: it cannot be swept.")


def check_groups(groups: Mapping[str, int]) -> None:
    wrong = {axis: count for axis, count in groups.items() if count < 1}
    if wrong:
        raise ValueError(f"every axis needs 1 group or more, got {wrong}.")
