"""Recurrences as the causal matrices that they multiply their input with: y_i = sum_{j <= i} M_ij x_j."""

import torch
from jaxtyping import Float
from torch import Tensor


def selective_scan_matrix(
    dt: Float[Tensor, "batch pos d_inner"],
    A: Float[Tensor, "d_inner d_state"],
    B: Float[Tensor, "batch pos *channels d_state"],
    C: Float[Tensor, "batch pos *channels d_state"],
) -> Float[Tensor, "batch d_inner dest src"]:
    """The selective scan's matrix, one a channel c:

        M_ij = dt_jc sum_n C_in B_jn exp(A_cn sum_{j < l <= i} dt_lc)        for j <= i, else 0.

    B and C are shared by all channels, [batch pos d_state], or have a channel axis before the last.
    Takes memory for two results: batch * d_inner * pos^2.
    """
    dt_sum = dt.transpose(1, 2).cumsum(-1)  # [batch, d_inner, pos]
    # The difference is formed before the exponential: the two factors apart overflow.
    between = dt_sum.unsqueeze(-1) - dt_sum.unsqueeze(-2)  # [batch, d_inner, dest, src]
    future = torch.ones(between.shape[-2:], dtype=torch.bool, device=dt.device).triu(1)
    between = between.masked_fill(future, torch.inf)  # A < 0, so that exp(A between) is 0 there
    matrix = torch.zeros_like(between)
    for n in range(A.shape[1]):
        C_n, B_n = (M[..., n] if M.ndim == 4 else M[..., n].unsqueeze(-1) for M in (C, B))
        decay = (A[:, n, None, None] * between).exp()
        matrix = matrix + C_n.transpose(1, 2).unsqueeze(-1) * decay * B_n.transpose(1, 2).unsqueeze(-2)
    return matrix * dt.transpose(1, 2).unsqueeze(-2)
