"""Sequence models in which nothing is opaque: convolutions, states, writes, decays, gates are hook points."""

from hooked_ssm import attribution, circuits, mixers, patching, plotting, states, zoo
from hooked_ssm.cache import HookedCache
from hooked_ssm.circuits import Circuit, find_circuit
from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.flattened import Flattened
from hooked_ssm.model import HookedSSM, ModelState

__all__ = [
    "Circuit",
    "Flattened",
    "HookedCache",
    "HookedSSM",
    "HookedSSMConfig",
    "MixerConfig",
    "ModelState",
    "attribution",
    "circuits",
    "find_circuit",
    "mixers",
    "patching",
    "plotting",
    "states",
    "zoo",
]
