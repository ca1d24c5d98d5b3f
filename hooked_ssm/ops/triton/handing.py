"""What hooks are handed by the chunked kernels, and at which positions."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..at import At
from ..state_edit import check_edited
from ..trajectory_edit import Setting, hand_out

Edit = Callable[[Tensor], object]

# Below this, the gradient of a decay, which the kernels give as that of its logarithm, would lose digits.
SMALL_DECAY = 0.1


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


def hand_out_decays(log_decay: Tensor, edit: Edit) -> tuple[Tensor, Tensor | None]:
    """The logarithms to compute with after an edit of the decays; and the decays themselves if the kernels
    cannot: where one is 0 or negative, or so small that its gradient, if there is one, would be inexact."""
    decay = log_decay.to(torch.promote_types(log_decay.dtype, torch.float32)).exp().clone()
    before = decay.detach().clone()
    returned = edit(decay)
    if returned is not None:
        decay = check_edited("decays", returned, before)
    least = decay.detach().amin().item()
    if torch.equal(decay, before):
        if decay.requires_grad and least < SMALL_DECAY:
            return log_decay, decay
        return _Logarithm.apply(decay, log_decay.detach()), None  # pyright: ignore[reportReturnType]
    if least <= 0 or (decay.requires_grad and least < SMALL_DECAY):
        return log_decay, decay
    return decay.log(), None


class _Logarithm(torch.autograd.Function):
    """The logarithm of decays, whose numbers are known to the last bit."""

    @staticmethod
    def forward(ctx, decay, log_decay):
        ctx.save_for_backward(decay)
        return log_decay.view_as(log_decay)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (decay,) = ctx.saved_tensors
        return grad / decay, None
