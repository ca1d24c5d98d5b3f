"""flash-linear-attention's DeltaNet, Gated DeltaNet and GLA models from weights, a token at a time."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, HEADS, LAYERS, D_VOCAB, D_MLP = 24, 2, 2, 29, 40
COMMON = {
    **{"hidden_size": WIDTH, "num_heads": HEADS, "num_hidden_layers": LAYERS, "vocab_size": D_VOCAB},
    **{"intermediate_size": D_MLP, "norm_eps": 1e-3, "fuse_norm": True, "attn": None},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "delta_net": {"model_type": "delta_net", "expand_k": 0.5, "expand_v": 1.0, "use_gate": False},
    "delta_net, gated output": {"model_type": "delta_net", "use_gate": True, "tie_word_embeddings": True},
    "delta_net, plain": {"model_type": "delta_net", "use_beta": False, "use_short_conv": False},
    "gated_deltanet": {"model_type": "gated_deltanet", "head_dim": 8, "expand_v": 2.0},
    "gated_deltanet, others": {
        **{"model_type": "gated_deltanet", "head_dim": 8, "expand_v": 1.0},
        **{"use_gate": False, "allow_neg_eigval": True, "num_v_heads": HEADS},
    },
    "gla": {"model_type": "gla", "expand_k": 0.5, "expand_v": 1.0},
}
CONFIGS = {name: COMMON | config for name, config in CONFIGS.items()}


def widths(config: dict[str, Any]) -> tuple[int, int]:
    """Of all heads together, the widths of keys and of values."""
    if config["model_type"] == "gated_deltanet":
        return HEADS * config["head_dim"], int(HEADS * config["head_dim"] * config["expand_v"])
    return int(WIDTH * config.get("expand_k", 1.0)), int(WIDTH * config.get("expand_v", 1.0))


def random_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights under flash-linear-attention's names."""
    kind, (d_key, d_value) = config["model_type"], widths(config)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embeddings.weight": (D_VOCAB, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (D_VOCAB, WIDTH)
    for layer in range(LAYERS):
        block = {
            **{
                "attn_norm.weight": (WIDTH,),
                "mlp_norm.weight": (WIDTH,),
                "attn.o_proj.weight": (WIDTH, d_value),
            },
            **{"mlp.gate_proj.weight": (D_MLP, WIDTH), "mlp.up_proj.weight": (D_MLP, WIDTH)},
            "mlp.down_proj.weight": (WIDTH, D_MLP),
        }
        for letter, width in zip("qkv", (d_key, d_key, d_value), strict=True):
            block[f"attn.{letter}_proj.weight"] = (width, WIDTH)
            if kind != "gla" and config.get("use_short_conv", True):
                block[f"attn.{letter}_conv1d.weight"] = (width, 1, 4)
        if config.get("use_gate", kind != "delta_net"):
            block["attn.g_proj.weight"] = (d_value, WIDTH)
        if kind == "gla":
            block |= {"attn.gk_proj.0.weight": (16, WIDTH), "attn.gk_proj.1.weight": (d_key, 16)}
            block |= {"attn.gk_proj.1.bias": (d_key,)}
        elif config.get("use_beta", True):
            block["attn.b_proj.weight"] = (HEADS, WIDTH)
        if kind == "gated_deltanet":
            block |= {"attn.a_proj.weight": (HEADS, WIDTH), "attn.A_log": (HEADS,), "attn.dt_bias": (HEADS,)}
        norm = "g_norm_swish_gate" if kind == "gla" else "o_norm"
        block[f"attn.{norm}.weight"] = (d_value // HEADS,)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return {name: 0.5 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def logits(config: dict[str, Any], weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Of one document."""
    eps, resid = config["norm_eps"], weights["model.embeddings.weight"][tokens]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        w = {name.removeprefix(prefix): W for name, W in weights.items() if name.startswith(prefix)}
        resid = resid + mix(config, w, rms(resid, w["attn_norm.weight"], eps))
        u = rms(resid, w["mlp_norm.weight"], eps)
        gated = F.silu(u @ w["mlp.gate_proj.weight"].T) * (u @ w["mlp.up_proj.weight"].T)
        resid = resid + gated @ w["mlp.down_proj.weight"].T
    unembedding = weights.get("lm_head.weight", weights["model.embeddings.weight"])
    return rms(resid, weights["model.norm.weight"], eps) @ unembedding.T


def mix(config: dict[str, Any], w: dict[str, Tensor], u: Tensor) -> Tensor:
    kind, length = config["model_type"], len(u)
    q, k, v = (convolved(w, letter, u @ w[f"attn.{letter}_proj.weight"].T, kind) for letter in "qkv")
    q, k, v = (x.view(length, HEADS, -1) for x in (q, k, v))
    if kind != "gla":
        q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    beta = torch.ones(length, HEADS, dtype=u.dtype)
    if "attn.b_proj.weight" in w:
        beta = (u @ w["attn.b_proj.weight"].T).sigmoid() * (2 if config.get("allow_neg_eigval") else 1)
    keep = torch.ones(length, HEADS, q.shape[-1], dtype=u.dtype)
    if kind == "gla":
        low = u @ w["attn.gk_proj.0.weight"].T @ w["attn.gk_proj.1.weight"].T + w["attn.gk_proj.1.bias"]
        keep = (F.logsigmoid(low) / 16).exp().view_as(keep)
    elif kind == "gated_deltanet":
        dt = F.softplus(u @ w["attn.a_proj.weight"].T + w["attn.dt_bias"])
        keep = (-w["attn.A_log"].exp() * dt).exp().unsqueeze(-1).expand_as(keep)
    S, reads = torch.zeros(HEADS, q.shape[-1], v.shape[-1], dtype=u.dtype), []
    for t in range(length):
        S = keep[t].unsqueeze(-1) * S
        write = v[t]
        if kind != "gla":
            write = beta[t].unsqueeze(-1) * (v[t] - torch.einsum("hkv,hk->hv", S, k[t]))
        S = S + torch.einsum("hk,hv->hkv", k[t], write)
        reads.append(torch.einsum("hkv,hk->hv", S, q[t]) * q.shape[-1] ** -0.5)
    norm = w["attn.g_norm_swish_gate.weight" if kind == "gla" else "attn.o_norm.weight"]
    z = rms(torch.stack(reads), norm, config["norm_eps"]).flatten(1)
    if "attn.g_proj.weight" in w:
        z = z * F.silu(u @ w["attn.g_proj.weight"].T)
    return z @ w["attn.o_proj.weight"].T


def convolved(w: dict[str, Tensor], letter: str, x: Tensor, kind: str) -> Tensor:
    if kind == "gla":
        return x
    taps = w.get(f"attn.{letter}_conv1d.weight")
    if taps is not None:
        x = F.conv1d(F.pad(x.T, (3, 0)), taps, groups=len(taps)).T
    return F.silu(x)


def rms(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * w
