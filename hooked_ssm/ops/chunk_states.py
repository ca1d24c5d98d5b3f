"""Sequences cut into chunks, and the states between chunks, S_{c+1} = a_c S_c + w_c.

The recurrence is that of `linear_scan`; but decays broadcast along the state, their gradient being summed
where it arises, and what is wanted is the state before every chunk.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def into_chunks(
    x: Float[Tensor, "batch pos *dims"], chunk: int
) -> Float[Tensor, "batch n_chunks chunk *dims"]:
    """[batch, pos, ...] -> [batch, chunk, pos in chunk, ...]; the last chunk is filled up with zeros.

    Zeros write nothing and, as the logarithm of a decay, take nothing from the state.
    """
    missing = -x.shape[1] % chunk
    if missing:
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing))
    return x.unflatten(1, (-1, chunk))


def chunk_states(
    decay: Float[Tensor, "batch chunk *#dims"] | None,
    write: Float[Tensor, "batch chunk *dims"],
    initial: Float[Tensor, "batch *dims"] | None = None,
) -> tuple[Float[Tensor, "batch chunk *dims"], Float[Tensor, "batch *dims"]]:
    """The state before each chunk, and that after the last. No decay is decay 1, no initial state is 0."""
    return _ChunkStates.apply(decay, write, initial)  # pyright: ignore[reportReturnType]


class _ChunkStates(torch.autograd.Function):
    @staticmethod
    def forward(ctx, decay, write, initial):
        before = torch.empty_like(write, memory_format=torch.contiguous_format)
        state = torch.zeros_like(write[:, 0]) if initial is None else initial
        for c, (w, out) in enumerate(zip(write.unbind(1), before.unbind(1), strict=True)):
            out.copy_(state)
            state = out + w if decay is None else torch.addcmul(w, decay[:, c], out)
        ctx.save_for_backward(decay, before)
        return before, state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_before, grad_last):  # pyright: ignore[reportIncompatibleMethodOverride]
        decay, before = ctx.saved_tensors
        grad_decays = []
        grad_write = torch.empty_like(before)
        total = grad_last  # of the state after chunk c, through all that follows
        for c in range(before.shape[1] - 1, -1, -1):
            grad_write[:, c] = total
            if decay is None:
                total = grad_before[:, c] + total
            else:
                grad_decays.append((total * before[:, c]).sum_to_size(decay[:, c].shape))
                total = torch.addcmul(grad_before[:, c], decay[:, c], total)
        grad_decay = None if decay is None else torch.stack(grad_decays[::-1], dim=1)
        return grad_decay, grad_write, total if ctx.needs_input_grad[2] else None
