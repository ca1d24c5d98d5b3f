"""Sequence models in which nothing is opaque: convolutions, states, writes, decays, gates are hook points."""

from hooked_ssm import attribution, mixers, patching, states, zoo
from hooked_ssm.cache import HookedCache
from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.model import HookedSSM, ModelState

__all__ = [
    "HookedCache",
    "HookedSSM",
    "HookedSSMConfig",
    "MixerConfig",
    "ModelState",
    "attribution",
    "mixers",
    "patching",
    "states",
    "zoo",
]
