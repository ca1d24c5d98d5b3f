"""Every architecture as its authors' code has it by default.

Each preset takes d_model, n_layers, d_vocab, and any other field of `HookedSSMConfig` as an option; unknown
ones raise a ValueError. All have pre-norm blocks, a final LayerNorm and tied N(0, 0.02) embeddings; only
attention has positions.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.mixers.attention import AttentionConfig
from hooked_ssm.mixers.base_conv import BaseConvConfig
from hooked_ssm.mixers.based import BasedConfig
from hooked_ssm.mixers.delta_net import DeltaNetConfig
from hooked_ssm.mixers.gated_delta_net import GatedDeltaNetConfig
from hooked_ssm.mixers.gla import GLAConfig
from hooked_ssm.mixers.h3 import H3Config
from hooked_ssm.mixers.hyena import HyenaConfig
from hooked_ssm.mixers.mamba import MambaConfig
from hooked_ssm.mixers.mamba2 import Mamba2Config
from hooked_ssm.zoo.preset import MAMBA_STYLE, config, transformer_style


def attention(
    *,
    d_model: int,
    n_layers: int = 2,
    d_vocab: int,
    bias: bool = False,
    rotary_dim: int = 0,
    rotary_base: float = 10_000.0,
    **options: Any,
) -> HookedSSMConfig:
    """A Transformer: one head, learned positions (rotary ones with `rotary_dim`), LayerNorm, an MLP of
    4 d_model."""
    layers = [AttentionConfig(bias=bias, rotary_dim=rotary_dim, rotary_base=rotary_base)] * n_layers
    positions = "none" if rotary_dim else "standard"
    defaults = transformer_style(d_model) | {"positional_embedding_type": positions}
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


def mamba2(
    *,
    d_model: int,
    n_layers: int = 2,
    d_vocab: int,
    d_state: int = 128,
    d_conv: int = 4,
    expand: int = 2,
    head_dim: int = 64,
    n_groups: int = 1,
    n_heads: int | None = None,
    **options: Any,
) -> HookedSSMConfig:
    """Mamba-2, with the official defaults: RMSNorm, no MLP, no positions. d_conv=0 removes the convolution.

    It has expand * d_model / head_dim heads; one, of width expand * d_model, where that is less than head_dim
    (the authors' code refuses such a model). `n_heads` says otherwise, whatever head_dim.
    """
    d_inner = expand * d_model
    if n_heads is None:
        head_dim = min(head_dim, d_inner)
        if head_dim < 1 or d_inner % head_dim:
            raise ValueError(
                f"zoo.mamba2's expand * d_model must be a multiple of head_dim, got {d_inner} and {head_dim}."
            )
        n_heads = d_inner // head_dim
    layers = [Mamba2Config(d_state=d_state, d_conv=d_conv, expand=expand, n_groups=n_groups)] * n_layers
    defaults = MAMBA_STYLE | {"n_heads": n_heads, "d_head": max(1, d_inner // max(1, n_heads))}
    return config("mamba2", d_model, d_vocab, layers, defaults | options)


def based(
    *,
    d_model: int,
    n_layers: int = 2,
    d_vocab: int,
    feature_dim: int = 16,
    d_conv: int | None = 3,
    train_positions: bool = False,
    filter_std: float | None = None,
    **options: Any,
) -> HookedSSMConfig:
    """Based: BaseConv and linear attention in turn, BaseConv first; LayerNorm, an MLP of 4 d_model, no
    positions. So a model of one layer is a BaseConv. `d_conv`, `train_positions` and `filter_std` are the
    BaseConv's, as in `base_conv`."""
    conv = BaseConvConfig(d_conv=d_conv, train_positions=train_positions, filter_std=filter_std)
    layers = [BasedConfig(feature_dim=feature_dim) if layer % 2 else conv for layer in range(n_layers)]
    return config("based", d_model, d_vocab, layers, transformer_style(d_model) | options)


def gla(
    *,
    d_model: int,
    n_layers: int = 2,
    d_vocab: int,
    expand_k: float = 0.5,
    expand_v: float = 1.0,
    gate_logit_normalizer: float = 16.0,
    gate_low_rank: int = 16,
    **options: Any,
) -> HookedSSMConfig:
    """Gated linear attention: four heads, RMSNorm, no positions, linear maps initially N(0, 0.02). The MLP of
    4 d_model is not gated, as the authors' is."""
    mixer = GLAConfig(
        expand_k=expand_k,
        expand_v=expand_v,
        gate_logit_normalizer=gate_logit_normalizer,
        gate_low_rank=gate_low_rank,
    )
    defaults = transformer_style(d_model) | {"normalization_type": "RMS", "n_heads": 4}
    return config("gla", d_model, d_vocab, [mixer] * n_layers, defaults | options)


def hybrid(
    *, d_model: int, n_layers: int = 2, d_vocab: int, d_conv: int = 4, **options: Any
) -> HookedSSMConfig:
    """Mamba and attention in turn, Mamba first: an example of a list of mixers. Not from the paper."""
    layers = [
        MambaConfig(d_conv=d_conv) if layer % 2 == 0 else AttentionConfig() for layer in range(n_layers)
    ]
    return config("hybrid", d_model, d_vocab, layers, MAMBA_STYLE | options)


def h3(
    *,
    d_model: int,
    n_layers: int = 2,
    d_vocab: int,
    d_state: int = 64,
    head_dim: int = 1,
    n_heads: int | None = None,
    output_order: Literal["head d_head", "d_head head"] = "head d_head",
    **options: Any,
) -> HookedSSMConfig:
    """H3: LayerNorm, an MLP of 4 d_model, no positions. d_model / head_dim heads; `n_heads` says otherwise,
    whatever head_dim."""
    if n_heads is None:
        if head_dim < 1 or d_model % head_dim:
            raise ValueError(
                f"zoo.h3's d_model must be a multiple of head_dim, got {d_model} and {head_dim}."
            )
        n_heads = d_model // head_dim
    layers = [H3Config(d_state=d_state, output_order=output_order)] * n_layers
    return config("h3", d_model, d_vocab, layers, transformer_style(d_model) | {"n_heads": n_heads} | options)


def base_conv(
    *,
    d_model: int,
    n_layers: int = 2,
    d_vocab: int,
    d_conv: int | Sequence[int | None] | None = (3, None),
    train_positions: bool = False,
    filter_std: float | None = None,
    **options: Any,
) -> HookedSSMConfig:
    """BaseConv: LayerNorm, an MLP of 4 d_model, no positions. `d_conv` is one width for all layers, or some
    that the layers have in turn; None is the long convolution, of up to n_ctx positions."""
    widths = d_conv if isinstance(d_conv, Sequence) else (d_conv,)
    if not widths:
        raise ValueError("zoo.base_conv's d_conv must have at least one width, got none.")
    layers = [
        BaseConvConfig(
            d_conv=widths[layer % len(widths)], train_positions=train_positions, filter_std=filter_std
        )
        for layer in range(n_layers)
    ]
    return config("base_conv", d_model, d_vocab, layers, transformer_style(d_model) | options)


def hyena(
    *,
    d_model: int,
    n_layers: int = 2,
    d_vocab: int,
    d_conv: int = 3,
    skip: bool = True,
    train_positions: bool = True,
    filter_std: float | None = None,
    **options: Any,
) -> HookedSSMConfig:
    """Hyena, for documents of up to n_ctx: LayerNorm, an MLP of 4 d_model, no positions."""
    layers = [
        HyenaConfig(d_conv=d_conv, skip=skip, train_positions=train_positions, filter_std=filter_std)
    ] * n_layers
    return config("hyena", d_model, d_vocab, layers, transformer_style(d_model) | options)


def delta_net(
    *,
    d_model: int,
    n_layers: int = 2,
    d_vocab: int,
    d_conv: int = 4,
    use_beta: bool = True,
    allow_neg_eigval: bool = False,
    use_gate: bool = False,
    expand_k: float = 1.0,
    expand_v: float = 1.0,
    **options: Any,
) -> HookedSSMConfig:
    """DeltaNet, with the defaults of flash-linear-attention's layer: 4 heads, convolutions of width 4, no
    gate. Around it LayerNorm, an MLP of 4 d_model, no positions. d_conv=0 removes the convolutions."""
    layer = DeltaNetConfig(
        d_conv=d_conv,
        use_beta=use_beta,
        allow_neg_eigval=allow_neg_eigval,
        use_gate=use_gate,
        expand_k=expand_k,
        expand_v=expand_v,
    )
    defaults = transformer_style(d_model) | {"n_heads": 4}
    return config("delta_net", d_model, d_vocab, [layer] * n_layers, defaults | options)


def gated_delta_net(
    *,
    d_model: int,
    n_layers: int = 2,
    d_vocab: int,
    d_conv: int = 4,
    allow_neg_eigval: bool = False,
    use_gate: bool = True,
    expand_k: float = 1.0,
    expand_v: float = 2.0,
    **options: Any,
) -> HookedSSMConfig:
    """Gated DeltaNet, with the defaults of flash-linear-attention's layer: values of twice the keys' width,
    convolutions of width 4, a gate. Only its 6 heads of width 256, for a d_model of 2048, are 4 of
    d_model / 4 here. Around it LayerNorm, an MLP of 4 d_model, no positions. d_conv=0 removes the
    convolutions."""
    layer = GatedDeltaNetConfig(
        d_conv=d_conv,
        allow_neg_eigval=allow_neg_eigval,
        use_gate=use_gate,
        expand_k=expand_k,
        expand_v=expand_v,
    )
    defaults = transformer_style(d_model) | {"n_heads": 4}
    return config("gated_delta_net", d_model, d_vocab, [layer] * n_layers, defaults | options)


PRESETS: dict[str, Callable[..., HookedSSMConfig]] = {
    "attention": attention,
    "base_conv": base_conv,
    "based": based,
    "gla": gla,
    "hyena": hyena,
    "mamba": mamba,
    "mamba2": mamba2,
    "delta_net": delta_net,
    "gated_delta_net": gated_delta_net,
    "h3": h3,
    "hybrid": hybrid,
}
