"""Products of decays over spans of a chunk, each formed from its own span.

A quotient of two running products, or the exponential of a difference of two running sums of logarithms,
would be the same and cheaper; but it loses all digits after a decay of almost 0, and is not a number after a
decay of exactly 0.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def head_products(
    log_decay: Float[Tensor, "*chunks pos"],
) -> tuple[
    Float[Tensor, "*chunks dest src"],
    Float[Tensor, "*chunks pos"],
    Float[Tensor, "*chunks pos"],
    Float[Tensor, "*chunks"],
]:
    """With one decay a position, a_t = exp(log_decay_t), the products

    a_{j+1} ... a_i for every i >= j (0 for j > i),   a_1 ... a_i,   a_{j+1} ... a_C,   a_1 ... a_C.
    """
    pos = log_decay.shape[-1]
    # [src, dest], summed along dest: row j has the logarithms after j.
    log_products = log_decay.unsqueeze(-2).expand(*log_decay.shape, pos).triu(1).cumsum(-1)
    products = log_products.exp().triu().mT
    to_here = log_decay.cumsum(-1).exp()
    return products, to_here, products[..., -1, :], to_here[..., -1]


def channel_products(
    q: Float[Tensor, "*chunks pos d_key"],
    k: Float[Tensor, "*chunks pos d_key"],
    decay: Float[Tensor, "*chunks pos d_key"],
) -> tuple[
    Float[Tensor, "*chunks dest src"],
    Float[Tensor, "*chunks pos d_key"],
    Float[Tensor, "*chunks pos d_key"],
    Float[Tensor, "*chunks d_key"],
]:
    """With a decay for every position and key channel c,

        sum_c q_ic (a_{j+1} ... a_i)_c k_jc for every i >= j (0 for j > i),
        a_1 ... a_i q_i,   a_{j+1} ... a_C k_j,   a_1 ... a_C.

    Two neighbouring blocks of positions make one of twice the length: a position i of the later one meets j
    of the earlier one at their border, (a_border ... a_i q_i) . (a_{j+1} ... a_border k_j): one matrix
    product for all. Blocks begin as single positions and double until they are the chunk, whose length is a
    power of two.
    """
    matrix = (q * k).sum(-1)[..., None, None]  # [*chunks, block, dest in block, src in block]
    q, k, total = (x.unsqueeze(-2) for x in (decay * q, k, decay))  # [*chunks, block, pos in block, d_key]
    while total.shape[-3] > 1:
        q_early, q_late = q.unflatten(-3, (-1, 2)).unbind(-3)
        k_early, k_late = k.unflatten(-3, (-1, 2)).unbind(-3)
        early, late = matrix.unflatten(-3, (-1, 2)).unbind(-3)
        total_early, total_late = total.unflatten(-3, (-1, 2)).unbind(-3)
        across = q_late @ k_early.mT
        early = torch.cat([early, torch.zeros_like(across)], -1)
        matrix = torch.cat([early, torch.cat([across, late], -1)], -2)
        q = torch.cat([q_early, total_early * q_late], -2)
        k = torch.cat([total_late * k_early, k_late], -2)
        total = total_early * total_late
    return matrix.squeeze(-3), q.squeeze(-3), k.squeeze(-3), total.squeeze(-3).squeeze(-2)
