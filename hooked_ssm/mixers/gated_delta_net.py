"""Gated DeltaNet: DeltaNet whose memory decays before it is corrected (Yang, Kautz & Hatamizadeh 2024,
arXiv:2412.06464). Per head, with q and k of length 1,

    a_t = exp(-exp(A_log) softplus(a_proj(u_t) + dt_bias))      one number
    w_t = beta_t (v_t - a_t S_{t-1}^T k_t)                      the error of what is left of the memory
    S_t = a_t S_{t-1} + k_t w_t^T                               S [d_key, d_value]
    y_t = S_t^T q_t / sqrt(d_key)

`delta_mixer` says what q, k, v and beta are, and what becomes of y.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.hooks import Hook
from hooked_ssm.mixers.delta_mixer import DeltaMixer, DeltaOptions
from hooked_ssm.mixers.heads import project_heads


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig(DeltaOptions, MixerConfig):
    """A_min, A_max: exp(A_log) is initially uniform in [0, A_max], but at least A_min: the logarithm of 0
    would leave a head without a decay, and without a gradient.
    dt_min, dt_max, dt_floor: softplus(dt_bias) is initially log-uniform in [dt_min, dt_max], but at least
    dt_floor.
    """

    name: ClassVar[str] = "gated_delta_net"
    expand_v: float = 2.0
    use_gate: bool = True
    A_min: float = 1e-4
    A_max: float = 16.0
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_floor: float = 1e-4

    def __post_init__(self):
        super().__post_init__()
        for low, high in (("A_min", "A_max"), ("dt_min", "dt_max")):
            if not 0 < getattr(self, low) <= getattr(self, high):
                raise ValueError(
                    f"{self.name}'s {low} must be positive and at most {high}, "
                    f"got {getattr(self, low)} and {getattr(self, high)}."
                )
        if self.dt_floor <= 0:
            raise ValueError(f"{self.name}'s dt_floor must be positive, got {self.dt_floor}.")

    def build(self, cfg: HookedSSMConfig) -> "GatedDeltaNet":
        return GatedDeltaNet(self, cfg)


class GatedDeltaNet(DeltaMixer):
    decays = True
    mixer_cfg: GatedDeltaNetConfig

    def __init__(self, mixer_cfg: GatedDeltaNetConfig, cfg: HookedSSMConfig):
        super().__init__(mixer_cfg, cfg)
        self.hook_ssm_decay = Hook("batch pos head", "decay, the share of the state that is kept")
        self.a_proj = self.linear(cfg.n_heads)
        self.A_log = nn.Parameter(torch.empty(cfg.n_heads))
        self.dt_bias = nn.Parameter(torch.empty(cfg.n_heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        c = self.mixer_cfg
        self.A_log.uniform_(0, c.A_max).clamp_(min=c.A_min).log_()
        log_dt = torch.empty_like(self.dt_bias).uniform_(math.log(c.dt_min), math.log(c.dt_max))
        dt = log_dt.exp().clamp(min=c.dt_floor)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    def log_decay(self, v_input: Float[Tensor, "batch pos #head d_model"]) -> Float[Tensor, "batch pos head"]:
        a = project_heads(v_input, self.a_proj, self.cfg.n_heads).squeeze(-1)
        # Rounded decays would add up: not in half precision.
        a, dt_bias, A_log = (
            x.to(torch.promote_types(x.dtype, torch.float32)) for x in (a, self.dt_bias, self.A_log)
        )
        return -A_log.exp() * F.softplus(a + dt_bias)
