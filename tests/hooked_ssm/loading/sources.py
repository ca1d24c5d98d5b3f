"""Random small models of transformers, moved away from their initial weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers.models.falcon_mamba import modeling_falcon_mamba
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.mamba import modeling_mamba
from transformers.models.mamba2 import modeling_mamba2

D_VOCAB = 29
FLOAT32_FAMILIES = (modeling_mamba, modeling_falcon_mamba, modeling_mamba2, modeling_gpt_neox)


def mamba(**options: Any):
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes(options)))


def falcon_mamba(**options: Any):
    return transformers.FalconMambaForCausalLM(transformers.FalconMambaConfig(**sizes(options)))


def mamba2(**options: Any):
    options = {"num_heads": 4, "head_dim": 12, "n_groups": 2, "chunk_size": 8} | options
    return transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes(options)))


def gpt2(**options: Any):
    options = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 50, "vocab_size": D_VOCAB} | options
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**options))


def gpt_neox(**options: Any):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    options = sizes | {"vocab_size": D_VOCAB, "max_position_embeddings": 50} | options
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**options))


def sizes(options: dict[str, Any]) -> dict[str, Any]:
    return {"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": D_VOCAB, "state_size": 5} | options


MODELS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "mamba": (mamba, {}),
    "mamba, untied": (mamba, {"tie_word_embeddings": False}),
    "mamba, other sizes": (
        mamba,
        {"conv_kernel": 3, "expand": 3, "time_step_rank": 4, "use_conv_bias": False},
    ),
    "mamba, eps": (mamba, {"layer_norm_epsilon": 1e-2}),
    "falcon_mamba": (falcon_mamba, {}),
    "falcon_mamba, eps": (falcon_mamba, {"mixer_rms_eps": 0.1, "tie_word_embeddings": False}),
    "mamba2": (mamba2, {}),
    "mamba2, tied": (mamba2, {"tie_word_embeddings": True, "n_groups": 1, "layer_norm_epsilon": 1e-2}),
    "gpt2": (gpt2, {}),
    "gpt2, others": (gpt2, {"n_inner": 40, "activation_function": "relu", "tie_word_embeddings": False}),
    "gpt_neox": (gpt_neox, {"rotary_pct": 0.5}),
    "gpt_neox, one after the other": (gpt_neox, {"use_parallel_residual": False, "rotary_pct": 1.0}),
    "gpt_neox, others": (
        gpt_neox,
        {
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rotary_emb_base": 300,
            "hidden_act": "gelu_new",
        },
    ),
}


def random_model(name: str, **options: Any) -> Any:
    """One of `MODELS`, in float32."""
    make, own = MODELS[name]
    torch.manual_seed(0)
    model = make(**(own | options))
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model.eval()


class _TorchWithWideFloat32:
    """torch as transformers' files see it, whose float32 is float64."""

    float32 = float = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


def in_float64(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model, computing in float64 throughout: transformers casts norms, scan, angles and logits to
    float32 whatever the model's dtype."""
    for module in FLOAT32_FAMILIES:
        monkeypatch.setattr(module, "torch", _TorchWithWideFloat32())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    theirs = theirs.double()
    for module in theirs.modules():
        if isinstance(module, modeling_gpt_neox.GPTNeoXRotaryEmbedding):  # its angles were made in float32
            module.inv_freq = module.compute_default_rope_parameters(module.config)[0]
    return theirs
