"""Every architecture as its authors' code has it by default.

Each preset takes d_model, n_layers, d_vocab, and any other field of `HookedSSMConfig` as an option; unknown
ones raise a ValueError. All have pre-norm blocks, a final LayerNorm and tied N(0, 0.02) embeddings; only
attention has positions.
"""

from collections.abc import Callable
from typing import Any

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.mixers.attention import AttentionConfig
from hooked_ssm.mixers.mamba import MambaConfig
from hooked_ssm.zoo.preset import MAMBA_STYLE, config, transformer_style


def attention(
    *, d_model: int, n_layers: int = 2, d_vocab: int, bias: bool = False, **options: Any
) -> HookedSSMConfig:
    """A Transformer: one head, learned positions, LayerNorm, an MLP of 4 d_model."""
    layers = [AttentionConfig(bias=bias)] * n_layers
    defaults = transformer_style(d_model) | {"positional_embedding_type": "standard"}
    return config("attention", d_model, d_vocab, layers, defaults | options)


def mamba(
    *,
    d_model: int,
    n_layers: int = 2,
    d_vocab: int,
    d_state: int = 16,
    d_conv: int = 4,
    expand: int = 2,
    **options: Any,
) -> HookedSSMConfig:
    """Mamba, with the official defaults: RMSNorm, no MLP, no positions. d_conv=0 removes the convolution."""
    layers = [MambaConfig(d_state=d_state, d_conv=d_conv, expand=expand)] * n_layers
    return config("mamba", d_model, d_vocab, layers, MAMBA_STYLE | options)


def hybrid(
    *, d_model: int, n_layers: int = 2, d_vocab: int, d_conv: int = 4, **options: Any
) -> HookedSSMConfig:
    """Mamba and attention in turn, Mamba first: an example of a list of mixers. Not from the paper."""
    layers = [
        MambaConfig(d_conv=d_conv) if layer % 2 == 0 else AttentionConfig() for layer in range(n_layers)
    ]
    return config("hybrid", d_model, d_vocab, layers, MAMBA_STYLE | options)


PRESETS: dict[str, Callable[..., HookedSSMConfig]] = {
    "attention": attention,
    "mamba": mamba,
    "hybrid": hybrid,
}
