"""The Mamba authors' own layout, `mamba_ssm`: Mamba and Mamba-2."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.loading.mamba_weights import mamba_weights, uniform_mamba_name
from hooked_ssm.loading.plan import Plan, Settings
from hooked_ssm.mixers.mamba import MambaConfig
from hooked_ssm.mixers.mamba2 import Mamba2Config

DEFAULTS = {
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
    "d_intermediate": 0,
    "attn_layer_idx": [],
    "attn_cfg": {},
    "tie_embeddings": True,
}
MAMBA_DEFAULTS = {
    **{"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto", "conv_bias": True, "bias": False},
}
MAMBA2_DEFAULTS = {
    **{
        "d_state": 128,
        "d_conv": 4,
        "expand": 2,
        "headdim": 64,
        "ngroups": 1,
        "conv_bias": True,
        "bias": False,
    },
    **{"d_ssm": None, "D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False},
    "dt_limit": [0.0, float("inf")],
}
INITIAL_AND_SPEED = (
    *("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"),
    *("conv_init", "A_init_range", "chunk_size", "use_mem_eff_path"),
)


def mamba_ssm(values: Mapping[str, Any]) -> Plan:
    """Its vocabulary is padded to a multiple: the model has logits for tokens that no tokenizer makes."""
    settings = Settings(values, DEFAULTS, "mamba_ssm model")
    settings.without_effect("fused_add_norm", "attn_cfg")
    settings.fixed("d_intermediate", 0)
    settings.fixed("attn_layer_idx", [], None)
    d_model, wide = settings.size("d_model"), bool(settings.take("residual_in_fp32"))
    mixer, d_head, conv_bias = mixer_of(dict(settings.take("ssm_cfg") or {}), d_model)
    multiple = settings.size("pad_vocab_size_multiple")
    norm = "RMS" if settings.take("rms_norm") else "LN"
    tied = bool(settings.take("tie_embeddings"))
    cfg = HookedSSMConfig(
        d_model=d_model,
        n_layers=settings.size("n_layer"),
        d_vocab=-(-settings.size("vocab_size") // multiple) * multiple,
        mixers=mixer,
        n_ctx=2048,
        normalization_type=norm,
        final_norm=norm,
        eps=1e-5,
        tie_embeddings=tied,
        n_heads=1 if d_head is None else mixer.expand * d_model // d_head,
        d_head=-1 if d_head is None else d_head,
    )
    settings.finish()
    weights = mamba_weights(cfg, conv_bias=conv_bias)
    return Plan(
        cfg, weights, partial(uniform_mamba_name, tied=tied), free_heads=d_head is None, wide_residual=wide
    )


def mixer_of(ssm_cfg: dict[str, Any], d_model: int) -> tuple[MambaConfig | Mamba2Config, int | None, bool]:
    """The mixer, the width of its heads if it has some, and whether its convolution has a bias."""
    layer = ssm_cfg.pop("layer", "Mamba1")
    if layer not in ("Mamba1", "Mamba2"):
        raise ValueError(f"ssm_cfg's layer must be 'Mamba1' or 'Mamba2', got {layer!r}.")
    defaults = MAMBA_DEFAULTS if layer == "Mamba1" else MAMBA2_DEFAULTS
    settings = Settings(ssm_cfg, defaults, f"mamba_ssm {layer}")
    settings.without_effect(*INITIAL_AND_SPEED)
    settings.fixed("bias", False)
    conv_bias = bool(settings.take("conv_bias"))
    sizes = {"d_state": "d_state", "d_conv": "d_conv", "expand": "expand"}
    if layer == "Mamba1":
        rank = None if settings.take("dt_rank") == "auto" else settings.size("dt_rank")
        mixer = MambaConfig(dt_rank=rank, **{ours: settings.size(name) for ours, name in sizes.items()})
        d_head = None
    else:
        sizes["n_groups"] = "ngroups"
        mixer = Mamba2Config(
            norm_before_gate=bool(settings.take("norm_before_gate")),
            D_has_hdim=bool(settings.take("D_has_hdim")),
            **{ours: settings.size(name) for ours, name in sizes.items()},
        )
        d_head = settings.size("headdim")
        settings.fixed("d_ssm", None, mixer.expand * d_model)
        settings.fixed("rmsnorm", True)
        settings.fixed("dt_limit", [0.0, float("inf")], (0.0, float("inf")))
    settings.finish()
    return mixer, d_head, conv_bias
