"""DeltaNet: linear attention whose memory is corrected, not only added to (Schlag, Irie & Schmidhuber 2021,
arXiv:2102.11174; with convolutions, and without a loop over positions, Yang et al. 2024, arXiv:2406.06484).

Per head, with q and k of length 1,

    w_t = beta_t (v_t - S_{t-1}^T k_t)      what k_t recalls is moved towards v_t: all the way if beta_t = 1
    S_t = S_{t-1} + k_t w_t^T               S [d_key, d_value]
    y_t = S_t^T q_t / sqrt(d_key)

`delta_mixer` says what q, k, v and beta are, and what becomes of y.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.mixers.delta_mixer import DeltaMixer, DeltaOptions


@dataclass(frozen=True, kw_only=True)
class DeltaNetConfig(DeltaOptions, MixerConfig):
    name: ClassVar[str] = "delta_net"

    def build(self, cfg: HookedSSMConfig) -> "DeltaNet":
        return DeltaNet(self, cfg)


class DeltaNet(DeltaMixer):
    decays = False

    def log_decay(self, v_input: Float[Tensor, "batch pos #head d_model"]) -> None:
        return None
