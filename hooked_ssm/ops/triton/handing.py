"""What hooks are handed by the chunked kernels, and at which positions."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..at import At
from ..linear_attention import edited
from ..trajectory_edit import Setting, hand_out

Edit = Callable[[Tensor], object]


def wanted(edit: Edit, length: int) -> tuple[tuple[int, ...], Edit]:
    """The positions that an edit asks for, and the edit of them alone."""
    if not isinstance(edit, At):
        return tuple(range(length)), edit
    if edit.positions[-1] >= length:
        raise ValueError(f"positions must be less than {length}, got {edit.positions}.")
    return edit.positions, edit.edit


def hand_out_at(name: str, trajectory: Tensor, edit: Edit, whole: bool) -> Setting:
    """`hand_out`; of some positions only, what is detached is not the trajectory as a whole."""
    setting = hand_out(name, trajectory, edit)
    return setting if whole else setting._replace(stop=False)


def decays(log_decay: Tensor | None, dtype: torch.dtype, edit: Edit | None) -> Tensor | None:
    """The decays as an edit leaves them: factors, of any sign."""
    if log_decay is None:
        return None
    decay = log_decay.to(dtype).exp()
    # A clone: exp keeps its result for its gradient, and an edit may write into what it is handed.
    return decay if edit is None else edited("decays", decay.clone(), edit)
