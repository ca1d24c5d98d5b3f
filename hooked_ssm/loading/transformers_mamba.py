"""transformers' Mamba, Falcon-Mamba and Mamba-2."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.loading.mamba_weights import mamba_weights, uniform_mamba_name
from hooked_ssm.loading.plan import Plan, Settings
from hooked_ssm.loading.transformers_config import settings_of
from hooked_ssm.mixers.mamba import MambaConfig
from hooked_ssm.mixers.mamba2 import Mamba2Config

TRAINING_AND_SPEED = (
    *("initializer_range", "rescale_prenorm_residual", "time_step_floor", "time_step_max", "time_step_min"),
    *("use_cache", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def mamba(values: Mapping[str, Any]) -> Plan:
    settings = settings_of(values)
    return mamba_plan(settings, inner_norm_eps=None)


def falcon_mamba(values: Mapping[str, Any]) -> Plan:
    settings = settings_of(values)
    return mamba_plan(settings, inner_norm_eps=settings.take("mixer_rms_eps"))


def mamba_plan(settings: Settings, *, inner_norm_eps: float | None) -> Plan:
    settings.without_effect("time_step_scale", "time_step_init_scheme", "use_mambapy", "use_associative_scan")
    mixer = MambaConfig(
        d_state=settings.size("state_size"),
        d_conv=settings.size("conv_kernel"),
        expand=settings.size("expand"),
        dt_rank=settings.size("time_step_rank"),
        inner_norm_eps=inner_norm_eps,
    )
    return plan(settings, mixer)


def mamba2(values: Mapping[str, Any]) -> Plan:
    settings = settings_of(values)
    settings.without_effect("time_step_rank", "chunk_size")
    limits = tuple(settings.take("time_step_limit"))
    if limits != (0.0, float("inf")):
        raise ValueError(
            f"time_step_limit={limits} of this {settings.what} cannot be honoured: "
            "only (0, inf) is supported."
        )
    mixer = Mamba2Config(
        d_state=settings.size("state_size"),
        d_conv=settings.size("conv_kernel"),
        expand=settings.size("expand"),
        n_groups=settings.size("n_groups"),
    )
    heads, d_head = settings.size("num_heads"), settings.size("head_dim")
    return plan(settings, mixer, n_heads=heads, d_head=d_head)


def plan(settings: Settings, mixer: MixerConfig, *, n_heads: int = 1, d_head: int = -1) -> Plan:
    settings.without_effect(*TRAINING_AND_SPEED)
    settings.fixed("use_bias", False)
    settings.fixed("hidden_act", "silu", "swish")
    tied = bool(settings.take("tie_word_embeddings"))
    cfg = HookedSSMConfig(
        d_model=settings.size("hidden_size"),
        n_layers=settings.size("num_hidden_layers"),
        d_vocab=settings.size("vocab_size"),
        mixers=mixer,
        n_ctx=2048,
        normalization_type="RMS",
        final_norm="RMS",
        eps=settings.take("layer_norm_epsilon"),
        tie_embeddings=tied,
        n_heads=n_heads,
        d_head=d_head,
    )
    conv_bias, wide = bool(settings.take("use_conv_bias")), bool(settings.take("residual_in_fp32"))
    settings.finish()
    weights = mamba_weights(cfg, conv_bias=conv_bias)
    return Plan(
        cfg,
        weights,
        partial(uniform_mamba_name, tied=tied),
        free_heads=isinstance(mixer, MambaConfig),
        wide_residual=wide,
    )
