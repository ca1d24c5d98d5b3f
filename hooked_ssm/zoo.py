"""Presets: the configurations of the paper (arXiv:2505.15105), by name.

Each takes d_model, n_layers and d_vocab, and any other field of `HookedSSMConfig` as an option. Every preset
has the paper's depth-wise details: pre-norm blocks, a final LayerNorm, tied embeddings, N(0, 0.02)
embeddings. In the paper every architecture has two layers and attention alone has positions.
"""

from typing import Any

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.mixers.attention import AttentionConfig
from hooked_ssm.mixers.mamba import MambaConfig


def attention(*, d_model: int, n_layers: int = 2, d_vocab: int, bias: bool = False, **options: Any) -> HookedSSMConfig:
    """A Transformer: one head, learned positions, LayerNorm, an MLP of 4 d_model."""
    options = {"d_mlp": 4 * d_model, "positional_embedding_type": "standard"} | options
    mixer = AttentionConfig(bias=bias)
    return HookedSSMConfig(d_model=d_model, n_layers=n_layers, d_vocab=d_vocab, mixers=mixer, **options)


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
    options = {"normalization_type": "RMS", "linear_std": None} | options
    mixer = MambaConfig(d_state=d_state, d_conv=d_conv, expand=expand)
    return HookedSSMConfig(d_model=d_model, n_layers=n_layers, d_vocab=d_vocab, mixers=mixer, **options)


def hybrid(
    *, d_model: int, n_layers: int = 2, d_vocab: int, d_conv: int = 4, **options: Any
) -> HookedSSMConfig:
    """Mamba and attention in turn, Mamba first: an example of a list of mixers. Not from the paper."""
    layers = [MambaConfig(d_conv=d_conv) if layer % 2 == 0 else AttentionConfig() for layer in range(n_layers)]
    options = {"normalization_type": "RMS", "linear_std": None} | options
    return HookedSSMConfig(d_model=d_model, n_layers=n_layers, d_vocab=d_vocab, mixers=layers, **options)


PRESETS = {"attention": attention, "mamba": mamba, "hybrid": hybrid}
