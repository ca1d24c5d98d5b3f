"""transformers' GPT-NeoX: attention with rotary positions, and the MLP beside it."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.loading.gpt2 import ACT_FN
from hooked_ssm.loading.plan import Piece, Plan, Settings, norm_weights, transposed
from hooked_ssm.loading.transformers_config import settings_of
from hooked_ssm.mixers.attention import AttentionConfig

TRAINING_AND_SPEED = (
    *("attention_dropout", "hidden_dropout", "classifier_dropout", "initializer_range", "use_cache"),
    *("is_decoder", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def gpt_neox(values: Mapping[str, Any]) -> Plan:
    """As TransformerLens has it, no BOS token is prepended by default: these models saw none in training."""
    settings = settings_of(values)
    settings.without_effect(*TRAINING_AND_SPEED)
    settings.fixed("hidden_act", *ACT_FN)
    d_model, n_heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    share, base = rotary(settings)
    biased = bool(settings.take("attention_bias"))
    cfg = HookedSSMConfig(
        d_model=d_model,
        n_layers=settings.size("num_hidden_layers"),
        d_vocab=settings.size("vocab_size"),
        mixers=AttentionConfig(bias=biased, rotary_dim=int(d_model // n_heads * share), rotary_base=base),
        n_heads=n_heads,
        n_ctx=settings.size("max_position_embeddings"),
        d_mlp=settings.size("intermediate_size"),
        act_fn=ACT_FN[settings.take("hidden_act")],
        parallel_attn_mlp=bool(settings.take("use_parallel_residual")),
        normalization_type="LN",
        final_norm="LN",
        eps=settings.take("layer_norm_eps"),
        tie_embeddings=bool(settings.take("tie_word_embeddings")),
        default_prepend_bos=False,
    )
    settings.finish()
    return Plan(cfg, weights_of(cfg, biased), partial(uniform_name, tied=cfg.tie_embeddings))


def rotary(settings: Settings) -> tuple[float, float]:
    """The share of a head's entries that is rotated, and the base of the angles.

    Raises ValueError for angles that are scaled in any way.
    """
    given = Settings(settings.take("rope_parameters"), {}, f"{settings.what}'s rope_parameters")
    given.fixed("rope_type", "default")
    given.without_effect("type")  # the old name of rope_type
    share, base = given.take("partial_rotary_factor"), given.take("rope_theta")
    given.finish()
    return float(share), float(base)


def weights_of(cfg: HookedSSMConfig, biased: bool) -> dict[str, Piece]:
    weights = {
        "embed.W_E": Piece(("gpt_neox.embed_in.weight",)),
        **norm_weights([("ln_final", "gpt_neox.final_layer_norm", "LN")]),
    }
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"gpt_neox.layers.{layer}"
        norms = [("ln1", "input_layernorm"), ("ln2", "post_attention_layernorm")]
        weights |= norm_weights([(f"{ours}.{a}", f"{theirs}.{b}", "LN") for a, b in norms])
        qkv, dense = f"{theirs}.attention.query_key_value", f"{theirs}.attention.dense"
        for index, letter in enumerate("QKV"):
            part = {"index": index, "heads": cfg.n_heads}
            weights[f"{ours}.mixer.W_{letter}"] = Piece((f"{qkv}.weight",), partial(one_of_qkv, **part))
            if biased:
                weights[f"{ours}.mixer.b_{letter}"] = Piece((f"{qkv}.bias",), partial(bias_of_qkv, **part))
        b_O = Piece((f"{dense}.bias",)) if biased else Piece((f"{dense}.weight",), no_bias)
        weights |= {
            f"{ours}.mixer.W_O": Piece((f"{dense}.weight",), lambda W: W.T.unflatten(0, (cfg.n_heads, -1))),
            f"{ours}.mixer.b_O": b_O,
            f"{ours}.mlp.W_in": Piece((f"{theirs}.mlp.dense_h_to_4h.weight",), transposed),
            f"{ours}.mlp.b_in": Piece((f"{theirs}.mlp.dense_h_to_4h.bias",)),
            f"{ours}.mlp.W_out": Piece((f"{theirs}.mlp.dense_4h_to_h.weight",), transposed),
            f"{ours}.mlp.b_out": Piece((f"{theirs}.mlp.dense_4h_to_h.bias",)),
        }
    if not cfg.tie_embeddings:
        weights["unembed.W_U"] = Piece(("lm_head.weight",), transposed)
    return weights


def one_of_qkv(
    W: Float[Tensor, "qkv d_model"], index: int, heads: int
) -> Float[Tensor, "head d_model d_head"]:
    """q, k and v of one head stand together, those of the next after them."""
    return rearrange(W, "(head qkv d_head) d -> qkv head d d_head", qkv=3, head=heads)[index]


def bias_of_qkv(b: Float[Tensor, " qkv"], index: int, heads: int) -> Float[Tensor, "head d_head"]:
    return rearrange(b, "(head qkv d_head) -> qkv head d_head", qkv=3, head=heads)[index]


def no_bias(W: Float[Tensor, "d_out d_in"]) -> Float[Tensor, " d_out"]:
    return torch.zeros_like(W[:, 0])


def uniform_name(name: str, *, tied: bool) -> str | None:
    """Base models lack the prefix; old files keep the causal mask and the angles, which are no weights."""
    if name.endswith((".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq")):
        return None
    if name in ("lm_head.weight", "embed_out.weight"):  # its old name
        return None if tied else "lm_head.weight"
    return name if name.startswith("gpt_neox.") else f"gpt_neox.{name}"
