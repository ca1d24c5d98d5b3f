"""Heads that are groups of neighbouring channels, each with an input of its own."""

from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from hooked_ssm.config import HookedSSMConfig


def check_groups(mixer: str, cfg: HookedSSMConfig) -> None:
    if cfg.d_model % cfg.n_heads:
        raise ValueError(
            f"{mixer}'s heads are groups of channels: d_model must be a multiple of n_heads, "
            f"got {cfg.d_model} and {cfg.n_heads}."
        )


def own_channels(x: Float[Tensor, "batch pos head d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """Of each head's copy of all channels, the channels that are the head's own."""
    heads = x.shape[2]
    copies = rearrange(x, "batch pos copy (head d) -> batch pos copy head d", head=heads)
    return rearrange(copies.diagonal(dim1=2, dim2=3), "batch pos d head -> batch pos (head d)")


def project_by_group(
    x: Float[Tensor, "batch pos head d_model"],
    weight: Float[Tensor, "channel d_model"],
    bias: Float[Tensor, " channel"],
) -> Float[Tensor, "batch pos channel"]:
    """A linear map, every channel of which reads the input of its own head."""
    W = rearrange(weight, "(head d) d_model -> head d d_model", head=x.shape[2])
    y = einsum(x, W, "batch pos head d_model, head d d_model -> batch pos head d")
    return y.flatten(2) + bias


def sum_groups(
    matrix: Float[Tensor, "batch channel dest src"], n_heads: int
) -> Float[Tensor, "batch head dest src"]:
    return reduce(matrix, "batch (head d) dest src -> batch head dest src", "sum", head=n_heads)
