"""`fla` (flash-linear-attention): DeltaNet, Gated DeltaNet and GLA."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.loading.plan import Piece, Plan, Settings, joined, norm_weights, transposed
from hooked_ssm.mixers.delta_net import DeltaNetConfig
from hooked_ssm.mixers.gated_delta_net import GatedDeltaNetConfig
from hooked_ssm.mixers.gla import GLAConfig

DEFAULTS = {
    **{"hidden_size": 2048, "num_hidden_layers": 24, "vocab_size": 32000, "norm_eps": 1e-6},
    **{"hidden_ratio": 4, "intermediate_size": None, "hidden_act": "swish", "tie_word_embeddings": False},
    **{
        "max_position_embeddings": 2048,
        "attn": None,
        "use_short_conv": True,
        "conv_size": 4,
        "conv_bias": False,
    },
}
TRAINING_AND_SPEED = (
    *(
        "model_type",
        "architectures",
        "attn_mode",
        "initializer_range",
        "use_cache",
        "fuse_norm",
        "fuse_swiglu",
    ),
    *("fuse_cross_entropy", "fuse_linear_cross_entropy", "use_l2warp", "bos_token_id", "eos_token_id"),
    *("pad_token_id", "torch_dtype", "dtype", "transformers_version", "auto_map", "_name_or_path"),
    *(
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
    ),
    *("id2label", "label2id", "problem_type", "_attn_implementation_autoset"),
)


def delta_net(values: Mapping[str, Any]) -> Plan:
    own = {"expand_k": 1.0, "expand_v": 1.0, "num_heads": 16, "use_beta": True, "use_gate": False}
    fixed = {"use_output_norm": True, "qk_norm": "l2", "qk_activation": "silu", "allow_neg_eigval": False}
    settings = settings_of(values, own | fixed, "DeltaNet")
    for name, value in fixed.items():
        settings.fixed(name, value)
    mixer = DeltaNetConfig(
        expand_k=float(settings.take("expand_k")),
        expand_v=float(settings.take("expand_v")),
        d_conv=conv_width(settings),
        use_beta=bool(settings.take("use_beta")),
        use_gate=bool(settings.take("use_gate")),
    )
    return plan(settings, mixer)


def gated_delta_net(values: Mapping[str, Any]) -> Plan:
    own = {"expand_v": 2.0, "num_heads": 6, "num_v_heads": None, "head_dim": 256, "num_hidden_layers": 21}
    settings = settings_of(values, own | {"use_gate": True, "allow_neg_eigval": False}, "Gated DeltaNet")
    settings.fixed("num_v_heads", None, settings.take("num_heads"))
    mixer = GatedDeltaNetConfig(
        expand_v=float(settings.take("expand_v")),
        d_conv=conv_width(settings),
        allow_neg_eigval=bool(settings.take("allow_neg_eigval")),
        use_gate=bool(settings.take("use_gate")),
    )
    return plan(settings, mixer, d_head=settings.size("head_dim"))


def gla(values: Mapping[str, Any]) -> Plan:
    own = {"expand_k": 0.5, "expand_v": 1.0, "num_heads": 4, "num_kv_heads": None, "use_short_conv": False}
    own |= {"gate_logit_normalizer": 16, "gate_low_rank_dim": 16}
    fixed = {"use_output_gate": True, "elementwise_affine": True, "use_gk": True, "use_gv": False}
    fixed |= {"feature_map": None, "clamp_min": None, "gate_fn": "swish"}
    settings = settings_of(values, own | fixed, "GLA")
    for name, value in fixed.items():
        settings.fixed(name, value)
    settings.fixed("num_kv_heads", None, settings.take("num_heads"))
    settings.fixed("use_short_conv", False)
    settings.without_effect("conv_size", "conv_bias")
    mixer = GLAConfig(
        expand_k=float(settings.take("expand_k")),
        expand_v=float(settings.take("expand_v")),
        gate_logit_normalizer=float(settings.take("gate_logit_normalizer")),
        gate_low_rank=settings.size("gate_low_rank_dim"),
    )
    return plan(settings, mixer)


def settings_of(values: Mapping[str, Any], defaults: dict[str, Any], what: str) -> Settings:
    settings = Settings(values, DEFAULTS | defaults, f"fla {what}")
    settings.without_effect(*TRAINING_AND_SPEED)
    settings.fixed("hidden_act", "swish", "silu")
    settings.fixed("attn", None)  # layers of attention among the others
    return settings


def conv_width(settings: Settings) -> int:
    settings.fixed("conv_bias", False)
    width = settings.size("conv_size")
    return width if settings.take("use_short_conv") else 0


def plan(settings: Settings, mixer: MixerConfig, d_head: int = -1) -> Plan:
    d_model, ratio = settings.size("hidden_size"), settings.take("hidden_ratio")
    d_mlp = settings.take("intermediate_size")
    if d_mlp is None:
        # Two thirds of `ratio` widths, up to a multiple of 256: about the parameters of a plain MLP.
        d_mlp = -(-int(d_model * (4 if ratio is None else ratio) * 2 / 3) // 256) * 256
    cfg = HookedSSMConfig(
        d_model=d_model,
        n_layers=settings.size("num_hidden_layers"),
        d_vocab=settings.size("vocab_size"),
        mixers=mixer,
        n_heads=settings.size("num_heads"),
        d_head=d_head,
        n_ctx=settings.size("max_position_embeddings"),
        d_mlp=d_mlp,
        gated_mlp=True,
        act_fn="silu",
        normalization_type="RMS",
        final_norm="RMS",
        eps=settings.take("norm_eps"),
        tie_embeddings=bool(settings.take("tie_word_embeddings")),
    )
    settings.finish()
    return Plan(cfg, weights_of(cfg, mixer), partial(uniform_name, tied=cfg.tie_embeddings))


def weights_of(cfg: HookedSSMConfig, mixer: MixerConfig) -> dict[str, Piece]:
    weights = {
        "embed.W_E": Piece(("model.embeddings.weight",)),
        **norm_weights([("ln_final", "model.norm", "RMS")]),
    }
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        norms = [("ln1", "attn_norm"), ("ln2", "mlp_norm"), ("mixer.norm", "attn.o_norm")]
        weights |= norm_weights([(f"{ours}.{a}", f"{theirs}.{b}", "RMS") for a, b in norms])
        for a, b in mixer_names(mixer).items():
            weights[f"{ours}.mixer.{a}"] = Piece((f"{theirs}.attn.{b}",))
        if getattr(mixer, "d_conv", 0):
            convs = tuple(f"{theirs}.attn.{letter}_conv1d.weight" for letter in "qkv")
            weights[f"{ours}.mixer.conv1d.weight"] = Piece(convs, joined)
        for a, b in (("W_gate", "gate_proj"), ("W_in", "up_proj"), ("W_out", "down_proj")):
            weights[f"{ours}.mlp.{a}"] = Piece((f"{theirs}.mlp.{b}.weight",), transposed)
    if not cfg.tie_embeddings:
        weights["unembed.W_U"] = Piece(("lm_head.weight",), transposed)
    return weights


def mixer_names(mixer: MixerConfig) -> dict[str, str]:
    """Of a mixer's weights that are one tensor there and here, our name and theirs."""
    projections = ["q_proj", "k_proj", "v_proj", "o_proj"]
    names = {}
    if isinstance(mixer, GLAConfig):
        projections.append("g_proj")
        names = {"gk_low.weight": "gk_proj.0.weight"}
        names |= {f"gk_proj.{kind}": f"gk_proj.1.{kind}" for kind in ("weight", "bias")}
    elif isinstance(mixer, DeltaNetConfig | GatedDeltaNetConfig):
        projections += ["b_proj"] * mixer.use_beta + ["g_proj"] * mixer.use_gate
        if isinstance(mixer, GatedDeltaNetConfig):
            projections.append("a_proj")
            names = {"A_log": "A_log", "dt_bias": "dt_bias"}
    return names | {f"{name}.weight": f"{name}.weight" for name in projections}


def uniform_name(name: str, *, tied: bool) -> str | None:
    """GLA's norm has other names, with its gate in one kernel or two; base models lack the prefix."""
    if name == "lm_head.weight":
        return None if tied else name
    name = name if name.startswith("model.") else f"model.{name}"
    return name.replace(".g_norm_swish_gate.", ".o_norm.").replace(".g_norm.", ".o_norm.")
