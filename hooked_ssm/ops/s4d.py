"""S4D, the diagonal state space model whose A, B, C depend on no input (Gu et al. 2022, arXiv:2206.11893).
Discretised, per head,

    h_t = A (.) h_{t-1} + B x_t            A, B, C complex [head, mode], |A| < 1
    y_t = 2 Re sum_modes C h_t             a mode stands for its complex conjugate too

So, with h the state before the first of L positions,

    y_t     = sum_{j <= t} K_{t-j} x_j + 2 Re sum_modes C A^{t+1} h        K_t = 2 Re sum_modes C B A^t
    h_{L-1} = sum_j A^{L-1-j} B x_j + A^L h

All three are matrix products with powers of A, done in real arithmetic: Re ab = [Re a, Im a] . [Re b, -Im b].
"""

import math

import torch
from einops import rearrange
from jaxtyping import Complex, Float
from torch import Tensor

BLOCK = 64  # positions for which all powers of A are in memory at once; timed from 16 to 256


def bilinear(
    A: Complex[Tensor, "head mode"], dt: Float[Tensor, " head"]
) -> tuple[Complex[Tensor, "head mode"], Complex[Tensor, "head mode"]]:
    """Of dh/dt = A h + B x, by the bilinear rule: A discretised, and what takes B to B discretised."""
    dt_A = A * dt.unsqueeze(-1)
    return (1 + dt_A / 2) / (1 - dt_A / 2), dt.unsqueeze(-1) / (1 - dt_A / 2)


def s4d_filter(
    A: Complex[Tensor, "head mode"], CB: Complex[Tensor, "head mode"], length: int
) -> Float[Tensor, "lag head"]:
    """K_0 .. K_{length-1}, from the products C B.

    With t = m a + b, K_t = 2 Re sum_modes (C B A^{m a}) A^b: only some 2 sqrt(length) powers are needed.
    """
    m = 2 ** math.ceil(math.log2(length) / 2)
    fine, A_m = powers(A, m)
    coarse, _ = powers(A_m, -(-length // m))
    K = 2 * as_reals(coarse * CB.unsqueeze(1)) @ as_reals(fine.conj()).mT
    return K.flatten(1)[:, :length].T


def s4d_response(
    A: Complex[Tensor, "head mode"],
    C: Complex[Tensor, "head mode"],
    state: Complex[Tensor, "batch head *dims mode"],
    length: int,
) -> Float[Tensor, "batch length head *dims"]:
    """What the state before the first position adds to y."""
    batch, heads, *dims, modes = state.shape
    h = state.reshape(batch, heads, -1, modes).transpose(0, 1)  # [head, batch, dim, mode]
    taken, A_block = powers(A, min(length, BLOCK))
    C_taken = as_reals((taken * (A * C).unsqueeze(1)).conj()).mT  # [head, 2 mode, pos]
    y = []
    for begun in range(0, length, BLOCK):
        if begun:
            h = h * A_block[:, None, None]
        y.append(2 * as_reals(h).flatten(1, 2) @ C_taken[..., : length - begun])
    return rearrange(torch.cat(y, dim=-1), "head (batch dim) pos -> batch pos head dim", batch=batch).reshape(
        batch, length, heads, *dims
    )


def s4d_last_state(
    A: Complex[Tensor, "head mode"],
    B: Complex[Tensor, "head mode"],
    x: Float[Tensor, "batch pos head *dims"],
    state: Complex[Tensor, "batch head *dims mode"] | None = None,
) -> Complex[Tensor, "batch head *dims mode"]:
    """The state after the last position."""
    batch, length, heads, *dims = x.shape
    x = rearrange(x.reshape(batch, length, heads, -1), "batch pos head dim -> head (batch dim) pos")
    h = None if state is None else state.reshape(batch, heads, -1, state.shape[-1]).transpose(0, 1)
    taken, A_block = powers(A, min(length, BLOCK))
    B_taken = as_reals((taken * B.unsqueeze(1)).flip(1))  # [head, pos, 2 mode]: at the last position it is B
    # The first block is the one that is shorter than the others.
    first = (length - 1) % BLOCK + 1
    for block in x.split([first, *[BLOCK] * ((length - first) // BLOCK)], dim=-1):
        size = block.shape[-1]
        flat = block @ B_taken[:, -size:]
        written = torch.view_as_complex(
            rearrange(flat, "head (batch dim) (mode part) -> head batch dim mode part", batch=batch, part=2)
        )
        if h is None:
            h = written
        else:
            A_size = A_block if size == taken.shape[1] else taken[:, size]
            h = A_size[:, None, None] * h + written
    assert h is not None
    return h.transpose(0, 1).reshape(batch, heads, *dims, -1)


def powers(
    A: Complex[Tensor, "head mode"], count: int
) -> tuple[Complex[Tensor, "head count mode"], Complex[Tensor, "head mode"]]:
    """A^0 .. A^{count-1}, and A^count, by doubling: log2(count) products, no logarithm, no exponential."""
    taken, square = torch.ones_like(A).unsqueeze(1), A
    while taken.shape[1] < count:
        taken = torch.cat([taken, taken * square.unsqueeze(1)], dim=1)
        square = square * square
    taken = taken[:, :count]
    return taken, taken[:, -1] * A


def as_reals(x: Complex[Tensor, "*batch mode"]) -> Float[Tensor, "*batch parts"]:
    """Real and imaginary parts in turn, one axis of twice the length."""
    return torch.view_as_real(x.resolve_conj().contiguous()).flatten(-2)
