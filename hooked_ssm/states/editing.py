"""Runs with states set, replaced, ablated or frozen.

Each function gives hooks, to be run with, or combined with any others:

    model.run_with_hooks(tokens, fwd_hooks=ablate_states(model, positions=[3], layers=[0]))

A state that is set stays set even if its value is the one it has, and all later states grow out of it.
Several such hooks on one layer act in their order; each sees the states as the layer's recurrence has them by
itself. They are for whole documents: `positions` count from the start of what is run.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_ssm.ops.state_edit import StateEdit
from hooked_ssm.patching.names import cached
from hooked_ssm.states.places import STATE, Positions, mask_of, over_state, recurrent_layers

Hooks = list[tuple[str, Callable[..., Any]]]
Value = Callable[[Tensor], Tensor]


def set_states(
    model: Any,
    values: Float[Tensor, "..."] | Mapping[int, Tensor],
    *,
    positions: Positions,
    layers: Sequence[int] | None = None,
) -> Hooks:
    """States set to a value that broadcasts to [batch, pos, ...]: one for all layers, or one by layer."""
    if isinstance(values, Mapping):
        layers = list(values) if layers is None else layers
        missing = [layer for layer in layers if layer not in values]
        if missing:
            raise ValueError(f"values for layers {list(values)} were given, and none for {missing}.")
        by_layer = dict(values)
    else:
        by_layer = {layer: values for layer in recurrent_layers(model, layers)}

    def value(layer: int) -> Value:
        def expanded(states: Tensor) -> Tensor:
            given = by_layer[layer].to(states)
            try:
                return given.expand_as(states)
            except RuntimeError as error:
                raise ValueError(
                    f"values for the states {list(states.shape)} of layer {layer} must broadcast to that, "
                    f"got {list(given.shape)}."
                ) from error

        return expanded

    return _hooks(model, recurrent_layers(model, layers), positions, value)


def replace_states(
    model: Any,
    cache: Any,
    *,
    positions: Positions,
    layers: Sequence[int] | None = None,
    source: Positions | None = None,
) -> Hooks:
    """States replaced by those of a cached run with as many documents.

    source: the one position of every document of that run whose state is put at all `positions`; None for the
        same positions, and then the documents must be as long.
    """
    layers = recurrent_layers(model, layers)
    found = {layer: cached(cache, f"blocks.{layer}.mixer.{STATE}", model) for layer in layers}
    if source is not None:
        one = next(iter(found.values()))
        mask = mask_of(source, one.shape[:2], one.device, "source")
        if (mask.sum(1) != 1).any():
            raise ValueError("source must be one position a document.")
        found = {layer: states[mask].unsqueeze(1) for layer, states in found.items()}
    return set_states(model, found, positions=positions)


def ablate_states(
    model: Any, *, positions: Positions, layers: Sequence[int] | None = None, mean_of: Any = None
) -> Hooks:
    """States set to 0, or to their mean over the documents of a cached run, position by position."""
    layers = recurrent_layers(model, layers)
    if mean_of is None:
        return _hooks(model, layers, positions, lambda layer: torch.zeros_like)
    names = {layer: f"blocks.{layer}.mixer.{STATE}" for layer in layers}
    means = {layer: cached(mean_of, name, model).mean(0, keepdim=True) for layer, name in names.items()}
    return set_states(model, means, positions=positions)


def freeze_states(
    model: Any, *, positions: Positions, layers: Sequence[int] | None = None, cache: Any = None
) -> Hooks:
    """States held at what they are without the edits.

    With a cache of the unedited run, whatever is edited anywhere. Without, at what the layer's recurrence
    gives by itself: edits of the same layer's states at earlier positions do not reach past these.
    """
    if cache is not None:
        return replace_states(model, cache, positions=positions, layers=layers)
    return _hooks(model, recurrent_layers(model, layers), positions, lambda layer: lambda states: states)


def _hooks(model: Any, layers: Sequence[int], positions: Positions, value: Callable[[int], Value]) -> Hooks:
    def edit(states: Tensor | StateEdit, hook: Any, value: Value) -> StateEdit:
        before = states.states if isinstance(states, StateEdit) else states
        mask = over_state(mask_of(positions, before.shape[:2], before.device, "positions"), before)
        edited = torch.where(mask, value(before), before)
        return StateEdit(edited, mask | states.mask if isinstance(states, StateEdit) else mask)

    return [(f"blocks.{layer}.mixer.{STATE}", partial(edit, value=value(layer))) for layer in layers]
