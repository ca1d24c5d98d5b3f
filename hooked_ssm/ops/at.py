"""An edit of some positions alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .state_edit import StateEdit, check_edited


class At:
    """`edit` is handed [batch, len(positions), ...], a fresh tensor, instead of all positions.

    It returns what any edit may return, of that shape. Positions increase. A back end that can do it forms
    no others; called like any other edit, with all positions, this does the same.
    """

    def __init__(self, positions: Sequence[int], edit: Callable[[Tensor], object]):
        self.positions, self.edit = tuple(positions), edit
        if not self.positions or any(b <= a for a, b in zip((-1, *self.positions), self.positions)):
            raise ValueError(f"positions must increase from 0 or more, and be some, got {positions}.")

    def __call__(self, whole: Tensor) -> Tensor | StateEdit | None:
        if self.positions[-1] >= whole.shape[1]:
            raise ValueError(f"positions must be less than {whole.shape[1]}, got {self.positions}.")
        index = torch.tensor(self.positions, device=whole.device)
        handed = whole.index_select(1, index)
        version = None if handed.is_inference() else handed._version
        returned = self.edit(handed)
        mask = None
        if isinstance(returned, StateEdit):
            returned, mask = returned.states, returned.mask
        if returned is None:
            if mask is None and version is not None and handed._version == version:
                return None
            returned = handed
        values = whole.index_copy(1, index, check_edited("positions asked for", returned, handed))
        if mask is None:
            return values
        everywhere = torch.zeros(whole.shape, dtype=torch.bool, device=whole.device)
        return StateEdit(values, everywhere.index_copy(1, index, mask.expand_as(handed).contiguous()))
