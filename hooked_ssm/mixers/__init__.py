"""One architecture, one file."""

from hooked_ssm.mixers.attention import Attention, AttentionConfig
from hooked_ssm.mixers.base import AttentionFreeMixer, Mixer
from hooked_ssm.mixers.mamba import Mamba, MambaConfig
from hooked_ssm.mixers.short_conv import ShortConv

__all__ = [
    "Attention",
    "AttentionConfig",
    "AttentionFreeMixer",
    "Mamba",
    "MambaConfig",
    "Mixer",
    "ShortConv",
]
