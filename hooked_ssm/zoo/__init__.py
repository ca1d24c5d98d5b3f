"""Presets by name: `zoo.mamba(...)` as published, `zoo.paper.mamba(...)` as the paper trained it."""

from hooked_ssm.zoo import paper
from hooked_ssm.zoo.published import PRESETS, attention, hybrid, mamba

__all__ = ["PRESETS", "attention", "hybrid", "mamba", "paper"]
