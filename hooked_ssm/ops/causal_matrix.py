"""Recurrences as the causal matrices that they multiply their input with: y_i = sum_{j <= i} M_ij x_j."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .decay_products import channel_products


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


def linear_attention_matrix(
    q: Float[Tensor, "batch pos head d_key"],
    k: Float[Tensor, "batch pos head d_key"],
    decay: Float[Tensor, "batch pos head"] | Float[Tensor, "batch pos head d_key"] | None = None,
) -> Float[Tensor, "batch head dest src"]:
    """Linear attention's matrix, one a head:

        M_ij = sum_c q_ic k_jc a_{j+1,c} ... a_ic        for j <= i, else 0.

    The decays a are factors, not logarithms: 0 and negative ones, as an edit may set them, included.
    """
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    if decay is None:
        return (q @ k.mT).tril()
    decay = (decay.unsqueeze(-1) if decay.ndim == 3 else decay).transpose(1, 2).expand_as(q)
    pos = q.shape[2]
    missing = (1 << (pos - 1).bit_length()) - pos
    q, k, decay = (F.pad(x, (0, 0, 0, missing)) for x in (q, k, decay))
    return channel_products(q, k, decay)[0][..., :pos, :pos]


def delta_rule_matrix(
    q: Float[Tensor, "batch pos head d_key"],
    k: Float[Tensor, "batch pos head d_key"],
    beta: Float[Tensor, "batch pos head"],
    decay: Float[Tensor, "batch pos head"] | None = None,
) -> Float[Tensor, "batch head dest src"]:
    """The delta rule's matrix, one a head: with L(q, k) for `linear_attention_matrix` and stril for the
    strictly lower triangle,

        M = L(q, k) (1 + stril(diag(beta) L(k, k)))^-1 diag(beta).

    So M_ij depends on the keys between j and i too: they may have overwritten what was written at j.
    """
    dtype = q.dtype
    q, k, beta = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, beta))  # the solver's
    decay = None if decay is None else decay.to(q.dtype)
    beta = beta.transpose(1, 2)
    A = beta.unsqueeze(-1) * linear_attention_matrix(k, k, decay)
    reads = linear_attention_matrix(q, k, decay)
    # The solver reads the strictly lower triangle of A and nothing else.
    matrix = torch.linalg.solve_triangular(A, reads, upper=False, left=False, unitriangular=True)
    return (matrix.tril() * beta.unsqueeze(-2)).to(dtype)
