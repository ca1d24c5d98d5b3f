"""Edits of complex tensors by hooks that see real ones, [..., 2]: the real and the imaginary part.

A number of which one part is set is set: both parts are then what came back.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Complex
from torch import Tensor

from .state_edit import StateEdit, check_edited


def edit_as_real(
    name: str, edit: Callable[[Tensor], object], x: Complex[Tensor, "..."]
) -> Complex[Tensor, "..."]:
    """x, after `edit` has seen its parts and set what it wants. `name` says in errors what they are."""
    parts = torch.view_as_real(x)
    returned = edit(parts)
    edited = parts if returned is None else check_edited(name, returned, parts)
    return torch.view_as_complex(edited.contiguous())


def edit_states_as_real(edit: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor | StateEdit]:
    """An `edit` of the parts of complex states, as `scan_with_edits` takes one of the states."""

    def edit_complex(states: Complex[Tensor, "batch pos *dims"]) -> Tensor | StateEdit:
        masks: list[Tensor] = []

        def keep_mask(parts: Tensor) -> object:
            returned = edit(parts)
            if not isinstance(returned, StateEdit):
                return returned
            masks.append(either_part(returned.mask, parts))
            return returned.states

        edited = edit_as_real("states", keep_mask, states)
        return StateEdit(edited, masks[0]) if masks else edited

    return edit_complex


def either_part(mask: object, parts: Tensor) -> Any:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        return mask  # the scan says what is wrong with it
    try:
        return mask.expand_as(parts).any(-1)
    except RuntimeError as error:
        raise ValueError(
            f"StateEdit.mask must broadcast to the states' {tuple(parts.shape)}, got {tuple(mask.shape)}."
        ) from error
