"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), with GPT-NeoX's pairs. Of a head's first
r = rotary_dim entries, entry j and entry j + r/2 are turned together, by an angle that grows with position t:

    theta_tj = t base^(-2j/r),    0 <= j < r/2
    x'_j       = x_j cos theta_tj - x_{j + r/2} sin theta_tj
    x'_{j+r/2} = x_j sin theta_tj + x_{j + r/2} cos theta_tj

so that q'_t . k'_s depends on positions only through t - s. Entries from r on stay as they are.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def turns(
    start: int, end: int, rotary_dim: int, base: float, like: Tensor
) -> tuple[Float[Tensor, "pos one half"], Float[Tensor, "pos one half"]]:
    """cos and sin of the angles at positions start..end-1, in the precision of `like`.

    Angles are made in float32 at least: in half precision positions of some hundreds would coincide.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    pairs = torch.arange(0, rotary_dim, 2, dtype=wide, device=like.device)
    positions = torch.arange(start, end, dtype=wide, device=like.device)
    angles = (positions[:, None] * (1.0 / base ** (pairs / rotary_dim))).unsqueeze(1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def turned(
    x: Float[Tensor, "batch pos head d_head"],
    cos: Float[Tensor, "pos one half"],
    sin: Float[Tensor, "pos one half"],
) -> Float[Tensor, "batch pos head d_head"]:
    half = cos.shape[-1]
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)
