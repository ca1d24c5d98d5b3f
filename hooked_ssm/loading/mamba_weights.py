"""The weights of Mamba and Mamba-2, whose names the authors' code and transformers share but for one."""

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.loading.plan import Piece, norm_weights, transposed
from hooked_ssm.mixers.mamba import MambaConfig
from hooked_ssm.mixers.mamba2 import Mamba2Config

SAME_NAME = {
    MambaConfig: (
        "in_proj.weight",
        "x_proj.weight",
        "dt_proj.weight",
        "dt_proj.bias",
        "A_log",
        "D",
        "out_proj.weight",
    ),
    Mamba2Config: ("in_proj.weight", "dt_bias", "A_log", "D", "out_proj.weight"),
}


def mamba_weights(cfg: HookedSSMConfig, *, conv_bias: bool) -> dict[str, Piece]:
    """Their names: `backbone.layers.0.mixer.D`, `backbone.embeddings.weight`, `lm_head.weight`.

    A convolution without bias is one whose bias is 0.
    """
    weights = {"embed.W_E": Piece(("backbone.embeddings.weight",))}
    for layer, mixer in enumerate(cfg.mixer_list):
        ours, theirs = f"blocks.{layer}", f"backbone.layers.{layer}"
        weights |= norm_weights([(f"{ours}.ln1", f"{theirs}.norm", cfg.normalization_type)])
        for name in SAME_NAME[type(mixer)]:  # type: ignore[index]
            weights[f"{ours}.mixer.{name}"] = Piece((f"{theirs}.mixer.{name}",))
        conv = f"{theirs}.mixer.conv1d"
        weights[f"{ours}.mixer.conv1d.weight"] = Piece((f"{conv}.weight",))
        if conv_bias:
            weights[f"{ours}.mixer.conv1d.bias"] = Piece((f"{conv}.bias",))
        else:
            weights[f"{ours}.mixer.conv1d.bias"] = Piece((f"{conv}.weight",), no_bias)
        if isinstance(mixer, Mamba2Config):
            groups = mixer.n_groups
            weights[f"{ours}.mixer.norm.w"] = Piece(
                (f"{theirs}.mixer.norm.weight",), lambda w, groups=groups: w.unflatten(0, (groups, -1))
            )
    weights |= norm_weights([("ln_final", "backbone.norm_f", cfg.final_norm)])
    if not cfg.tie_embeddings:
        weights["unembed.W_U"] = Piece(("lm_head.weight",), transposed)
    return weights


def uniform_mamba_name(name: str, *, tied: bool) -> str | None:
    """The name as `mamba_weights` has it: some files lack the prefix, or write `embedding`."""
    if name == "lm_head.weight":
        return None if tied else name
    name = name if name.startswith("backbone.") else f"backbone.{name}"
    return name.replace("backbone.embedding.", "backbone.embeddings.")


def no_bias(weight: Float[Tensor, "channel one d_conv"]) -> Float[Tensor, " channel"]:
    return torch.zeros_like(weight[:, 0, 0])
