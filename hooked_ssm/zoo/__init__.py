"""Presets by name: `zoo.mamba(...)` as published, `zoo.paper.mamba(...)` as the paper trained it."""

from hooked_ssm.zoo import paper
from hooked_ssm.zoo.published import (
    PRESETS,
    attention,
    base_conv,
    based,
    delta_net,
    gated_delta_net,
    gla,
    h3,
    hybrid,
    hyena,
    mamba,
    mamba2,
)

__all__ = [
    "PRESETS",
    "attention",
    "base_conv",
    "based",
    "delta_net",
    "gated_delta_net",
    "gla",
    "h3",
    "hybrid",
    "hyena",
    "mamba",
    "mamba2",
    "paper",
]
