"""Positions and layers, as the state tools take them."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooked_ssm.interchange import as_mask

# One position or several, the same in all documents; or as a tensor one a document, or a mask.
Positions = int | Sequence[int] | range | Int[Tensor, " batch"] | Bool[Tensor, "batch pos"]

STATE = "hook_ssm_state"


def mask_of(
    positions: Positions, shape: torch.Size, device: torch.device, what: str
) -> Bool[Tensor, "batch pos"]:
    """The positions as a mask of documents of this shape. Raises ValueError if they are out of range."""
    if isinstance(positions, Tensor):
        return as_mask(what, positions.to(device), shape)
    listed = [positions] if isinstance(positions, int) else list(positions)
    if not listed or min(listed) < 0 or max(listed) >= shape[1]:
        raise ValueError(f"{what} must be positions from 0 to {shape[1] - 1}, got {listed}.")
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    mask[:, listed] = True
    return mask


def recurrent_layers(model: Any, layers: Sequence[int] | None) -> list[int]:
    """The layers asked for, or all, that have a recurrent state. Raises ValueError for one without."""
    n_layers = model.cfg.n_layers
    having = [layer for layer in range(n_layers) if f"blocks.{layer}.mixer.{STATE}" in model.hook_dict]
    if layers is None and having:
        return having
    wrong = [layer for layer in layers or [] if layer not in having]
    if wrong or not having:
        raise ValueError(f"layers with a recurrent state are {having}, got {wrong or 'a model without any'}.")
    return list(layers or [])


def over_state(mask: Bool[Tensor, "batch pos"], states: Tensor) -> Bool[Tensor, "batch pos ..."]:
    """A mask of positions with an axis of 1 for each of the state's."""
    return mask.reshape(*mask.shape, *[1] * (states.ndim - mask.ndim))
