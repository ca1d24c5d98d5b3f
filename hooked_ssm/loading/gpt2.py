"""transformers' GPT-2."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.loading.plan import Piece, Plan, norm_weights, transposed
from hooked_ssm.loading.transformers_config import settings_of
from hooked_ssm.mixers.attention import AttentionConfig

ACT_FN = {
    **{"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu"},
    **{"relu": "relu", "silu": "silu", "swish": "silu"},
}
TRAINING_AND_SPEED = (
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range", "use_cache"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
    *("summary_first_dropout", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def gpt2(values: Mapping[str, Any]) -> Plan:
    settings = settings_of(values)
    settings.without_effect(*TRAINING_AND_SPEED)
    settings.fixed("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        settings.fixed(name, False)
    settings.fixed("activation_function", *ACT_FN)
    d_model = settings.size("n_embd")
    cfg = HookedSSMConfig(
        d_model=d_model,
        n_layers=settings.size("n_layer"),
        d_vocab=settings.size("vocab_size"),
        mixers=AttentionConfig(bias=True),
        n_heads=settings.size("n_head"),
        n_ctx=settings.size("n_positions"),
        d_mlp=4 * d_model if settings.take("n_inner") is None else settings.size("n_inner"),
        act_fn=ACT_FN[settings.take("activation_function")],
        positional_embedding_type="standard",
        normalization_type="LN",
        final_norm="LN",
        eps=settings.take("layer_norm_epsilon"),
        tie_embeddings=bool(settings.take("tie_word_embeddings")),
    )
    settings.finish()
    return Plan(cfg, weights_of(cfg), partial(uniform_name, tied=cfg.tie_embeddings))


def weights_of(cfg: HookedSSMConfig) -> dict[str, Piece]:
    weights = {
        "embed.W_E": Piece(("transformer.wte.weight",)),
        "pos_embed.W_pos": Piece(("transformer.wpe.weight",)),
        **norm_weights([("ln_final", "transformer.ln_f", "LN")]),
    }
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        weights |= norm_weights([(f"{ours}.ln{i}", f"{theirs}.ln_{i}", "LN") for i in (1, 2)])
        for index, letter in enumerate("QKV"):
            part = {"index": index, "heads": cfg.n_heads}
            weights[f"{ours}.mixer.W_{letter}"] = Piece(
                (f"{theirs}.attn.c_attn.weight",), partial(one_of_qkv, **part)
            )
            weights[f"{ours}.mixer.b_{letter}"] = Piece(
                (f"{theirs}.attn.c_attn.bias",), partial(bias_of_qkv, **part)
            )
        weights |= {
            f"{ours}.mixer.W_O": Piece(
                (f"{theirs}.attn.c_proj.weight",), lambda W: W.unflatten(0, (cfg.n_heads, -1))
            ),
            f"{ours}.mixer.b_O": Piece((f"{theirs}.attn.c_proj.bias",)),
            f"{ours}.mlp.W_in": Piece((f"{theirs}.mlp.c_fc.weight",)),
            f"{ours}.mlp.b_in": Piece((f"{theirs}.mlp.c_fc.bias",)),
            f"{ours}.mlp.W_out": Piece((f"{theirs}.mlp.c_proj.weight",)),
            f"{ours}.mlp.b_out": Piece((f"{theirs}.mlp.c_proj.bias",)),
        }
    if not cfg.tie_embeddings:
        weights["unembed.W_U"] = Piece(("lm_head.weight",), transposed)
    return weights


def one_of_qkv(
    W: Float[Tensor, "d_model qkv"], index: int, heads: int
) -> Float[Tensor, "head d_model d_head"]:
    return rearrange(W, "d (qkv head d_head) -> qkv head d d_head", qkv=3, head=heads)[index]


def bias_of_qkv(b: Float[Tensor, " qkv"], index: int, heads: int) -> Float[Tensor, "head d_head"]:
    return rearrange(b, "(qkv head d_head) -> qkv head d_head", qkv=3, head=heads)[index]


def uniform_name(name: str, *, tied: bool) -> str | None:
    """Some files lack the prefix; some keep the causal mask, which is no weight."""
    if name.endswith((".attn.bias", ".attn.masked_bias")):
        return None
    if name == "lm_head.weight":
        return None if tied else name
    return name if name.startswith("transformer.") else f"transformer.{name}"
