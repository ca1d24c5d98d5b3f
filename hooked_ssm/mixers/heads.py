"""Linear maps to heads, of one input for all heads or of one for each."""

from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn


def project_heads(
    x: Float[Tensor, "batch pos #head d_in"], linear: nn.Linear, heads: int
) -> Float[Tensor, "batch pos head d_out"]:
    """What `linear`, whose outputs are those of the heads in order, makes of one input, or of one a head."""
    if x.shape[2] == 1:
        return linear(x.squeeze(2)).unflatten(-1, (heads, -1))
    weight = rearrange(linear.weight, "(head d_out) d_in -> head d_out d_in", head=heads)
    y = einsum(x, weight, "batch pos head d_in, head d_out d_in -> batch pos head d_out")
    return y if linear.bias is None else y + linear.bias.unflatten(0, (heads, -1))


def head_weights(linear: nn.Linear, heads: int) -> Float[Tensor, "head d_head d_model"]:
    """The weight of an output projection by head: W_O."""
    return linear.weight.t().unflatten(0, (heads, -1))
