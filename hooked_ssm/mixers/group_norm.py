"""RMSNorm by group of channels: x / sqrt(mean over the group of x^2 + eps) * w, with a w a channel."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hooked_ssm.layers import RMSNorm


class GroupRMSNorm(RMSNorm):
    """Its hooks have an axis of groups: hook_scale [batch pos group one], hook_normalized."""

    def __init__(self, groups: int, width: int, eps: float):
        super().__init__(width, eps, shape="batch pos group d_group")
        self.w = nn.Parameter(torch.ones(groups, width))

    def normalize(self, x: Float[Tensor, "*batch d_group"]) -> Float[Tensor, "*batch d_group"]:
        return F.rms_norm(x, x.shape[-1:], None, self.eps) * self.w

    def by_group(self, x: Float[Tensor, "batch pos d_inner"]) -> Float[Tensor, "batch pos d_inner"]:
        return self(x.unflatten(-1, self.w.shape)).flatten(2)
