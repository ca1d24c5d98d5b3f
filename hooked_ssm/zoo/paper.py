"""Every architecture as the paper (arXiv:2505.15105) trained it, oddities included.

Mamba-2 is in the paper's code, with its authors' defaults, but was not part of any sweep.
Called as the presets of `hooked_ssm.zoo.published`. In the paper every architecture has two layers.
"""

from collections.abc import Callable
from typing import Any

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.zoo import published
from hooked_ssm.zoo.published import attention, mamba, mamba2


def h3(*, d_model: int, n_layers: int = 2, d_vocab: int, **options: Any) -> HookedSSMConfig:
    """H3 with 1024 entries of state and heads of width 2. The outputs of the heads are flattened with the
    heads innermost, as the authors' code does without its fused kernel."""
    defaults = {"d_state": 1024, "head_dim": 2, "output_order": "d_head head"}
    return published.h3(d_model=d_model, n_layers=n_layers, d_vocab=d_vocab, **(defaults | options))


def base_conv(*, d_model: int, n_layers: int = 2, d_vocab: int, **options: Any) -> HookedSSMConfig:
    """BaseConv, of width 3 and long in turn. The long filter's features of a lag are trained, though meant to
    be fixed, and its MLP starts, as every linear map of the model, from N(0, 0.02) and biases of 0."""
    defaults = {"train_positions": True, "filter_std": 0.02}
    return published.base_conv(d_model=d_model, n_layers=n_layers, d_vocab=d_vocab, **(defaults | options))


def base_conv_long_only(*, d_model: int, n_layers: int = 2, d_vocab: int, **options: Any) -> HookedSSMConfig:
    """`base_conv` with the long convolution in every layer."""
    return base_conv(d_model=d_model, n_layers=n_layers, d_vocab=d_vocab, **({"d_conv": None} | options))


def based(*, d_model: int, n_layers: int = 2, d_vocab: int, **options: Any) -> HookedSSMConfig:
    """Based with feature_dim 8 and one head, in every second layer, after a BaseConv of width 3: the 1-layer
    models of this name are a BaseConv alone."""
    defaults = {"feature_dim": 8, "train_positions": True, "filter_std": 0.02}
    return published.based(d_model=d_model, n_layers=n_layers, d_vocab=d_vocab, **(defaults | options))


def based_long_only(*, d_model: int, n_layers: int = 2, d_vocab: int, **options: Any) -> HookedSSMConfig:
    """`based` with the long convolution in its BaseConvs."""
    return based(d_model=d_model, n_layers=n_layers, d_vocab=d_vocab, **({"d_conv": None} | options))


def hyena(*, d_model: int, n_layers: int = 2, d_vocab: int, **options: Any) -> HookedSSMConfig:
    """Hyena without the skip past its long convolution, which an option meant for biases switched off. Its
    filter's MLP starts, as every linear map of the model, from N(0, 0.02) and biases of 0: the filter starts
    near 0, and so does all that the mixer adds. The features of a lag have the full learning rate."""
    defaults = {"skip": False, "filter_std": 0.02}
    return published.hyena(d_model=d_model, n_layers=n_layers, d_vocab=d_vocab, **(defaults | options))


def delta_net(*, d_model: int, n_layers: int = 2, d_vocab: int, **options: Any) -> HookedSSMConfig:
    """DeltaNet in every layer, as zoology, whose code the paper builds on, has it in its hybrids: 2 heads,
    convolutions of width 4, no gate. The paper's own configuration is not known: it is not in its code."""
    defaults: dict[str, Any] = {"n_heads": 2}
    return published.delta_net(d_model=d_model, n_layers=n_layers, d_vocab=d_vocab, **(defaults | options))


PRESETS: dict[str, Callable[..., HookedSSMConfig]] = {
    "attention": attention,
    "base_conv": base_conv,
    "base_conv_long_only": base_conv_long_only,
    "based": based,
    "based_long_only": based_long_only,
    "delta_net": delta_net,
    "h3": h3,
    "hyena": hyena,
    "mamba": mamba,
    "mamba2": mamba2,
}
