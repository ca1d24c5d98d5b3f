"""x / sqrt(mean x^2 + eps) (.) w, over the last axis."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .backends import call_of, implementation
from .memory import FEW_ROWS, builds_graph


def rms_norm(
    x: Float[Tensor, "*batch d"], weight: Float[Tensor, " d"], eps: float
) -> Float[Tensor, "*batch d"]:
    """For single tokens, without a graph, in one go: torch has a pass for each operation on a CPU."""
    few = x.shape[-1:] == weight.shape and x.numel() <= FEW_ROWS * len(weight)
    if not few or builds_graph(x, weight) or x.dtype != weight.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    return implementation(call_of("rms_norm", {"x": x, "weight": weight}))(x, weight, eps)


def torch_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)
