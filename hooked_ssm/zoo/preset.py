"""From the options of a preset to the config of a model."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from hooked_ssm.config import HookedSSMConfig, MixerConfig, check_known

MAMBA_STYLE: dict[str, Any] = {"normalization_type": "RMS", "linear_std": None}


def transformer_style(d_model: int) -> dict[str, Any]:
    """LayerNorm, an MLP of 4 d_model after every mixer, linear maps initially N(0, 0.02)."""
    return {"d_mlp": 4 * d_model}


def config(
    preset: str, d_model: int, d_vocab: int, layers: Sequence[MixerConfig], options: dict[str, Any]
) -> HookedSSMConfig:
    """The config with these mixers. Raises ValueError for an option that `HookedSSMConfig` does not have."""
    check_known(
        options, {field.name for field in fields(HookedSSMConfig) if field.init}, f"option of zoo.{preset}"
    )
    return HookedSSMConfig(
        d_model=d_model, n_layers=len(layers), d_vocab=d_vocab, mixers=list(layers), **options
    )
