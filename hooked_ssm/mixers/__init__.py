"""One architecture, one file."""

from hooked_ssm.mixers.attention import Attention, AttentionConfig
from hooked_ssm.mixers.base import AttentionFreeMixer, Mixer
from hooked_ssm.mixers.base_conv import BaseConv, BaseConvConfig
from hooked_ssm.mixers.based import Based, BasedConfig
from hooked_ssm.mixers.delta_net import DeltaNet, DeltaNetConfig
from hooked_ssm.mixers.gated_delta_net import GatedDeltaNet, GatedDeltaNetConfig
from hooked_ssm.mixers.gla import GLA, GLAConfig
from hooked_ssm.mixers.h3 import H3, H3Config
from hooked_ssm.mixers.hyena import Hyena, HyenaConfig
from hooked_ssm.mixers.mamba import Mamba, MambaConfig
from hooked_ssm.mixers.mamba2 import Mamba2, Mamba2Config
from hooked_ssm.mixers.short_conv import ShortConv

__all__ = [
    "Attention",
    "AttentionConfig",
    "AttentionFreeMixer",
    "BaseConv",
    "BaseConvConfig",
    "Based",
    "BasedConfig",
    "DeltaNet",
    "DeltaNetConfig",
    "GLA",
    "GLAConfig",
    "GatedDeltaNet",
    "GatedDeltaNetConfig",
    "H3",
    "H3Config",
    "Hyena",
    "HyenaConfig",
    "Mamba",
    "Mamba2",
    "Mamba2Config",
    "MambaConfig",
    "Mixer",
    "ShortConv",
]
