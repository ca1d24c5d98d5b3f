"""The Mamba authors' layout: the weights of a transformers model, under the authors' names and config."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hooked_ssm import HookedSSM
from hooked_ssm.layers import LayerNorm, RMSNorm

from .sources import random_model

# 29 tokens, padded to a multiple of 8.
MAMBA = {
    **{"d_model": 24, "n_layer": 2, "vocab_size": 29, "ssm_cfg": {"d_state": 5}, "rms_norm": True},
    **{"residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8},
}
MAMBA2 = MAMBA | {
    "ssm_cfg": {"layer": "Mamba2", "d_state": 5, "headdim": 12, "ngroups": 2, "chunk_size": 8},
    **{"d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": {}, "tie_embeddings": True},
}
CONFIGS = {"mamba": MAMBA, "mamba2": MAMBA2}


def weights_of(theirs: nn.Module) -> dict[str, torch.Tensor]:
    weights = {k.replace(".embeddings.", ".embedding."): v.clone() for k, v in theirs.state_dict().items()}
    return weights | {"lm_head.weight": weights["backbone.embedding.weight"].clone()}


def write(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor], kind: str) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "safetensors":
        save_file(weights, folder / "model.safetensors")
    else:
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "bin")


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old bin"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_are_those_of_the_model_that_the_weights_are_from(name, kind, tmp_path):
    theirs = random_model(name, vocab_size=32, tie_word_embeddings=True)
    write(tmp_path, CONFIGS[name], weights_of(theirs), kind)
    ours, tokens = HookedSSM.from_pretrained(tmp_path), torch.randint(32, (2, 11))
    assert ours.cfg.d_vocab == 32 and ours.cfg.tie_embeddings
    assert torch.equal(ours(tokens), HookedSSM.from_pretrained(theirs)(tokens))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=2e-5, atol=2e-5)


@dataclass
class MambaConfig:
    """The fields of mamba_ssm's own config, with its defaults."""

    d_model: int = 2560
    d_intermediate: int = 0
    n_layer: int = 64
    vocab_size: int = 50277
    ssm_cfg: dict = field(default_factory=dict)
    attn_layer_idx: list = field(default_factory=list)
    attn_cfg: dict = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True


class MambaLMHeadModel(nn.Module):
    """The names that mamba_ssm's model has, `embedding` and a tied `lm_head` among them."""

    def __init__(self, theirs: nn.Module, config: MambaConfig):
        super().__init__()
        self.config, self.backbone = config, nn.Module()
        self.backbone.embedding = theirs.backbone.embeddings
        self.backbone.layers, self.backbone.norm_f = theirs.backbone.layers, theirs.backbone.norm_f
        self.lm_head = nn.Linear(*theirs.backbone.embeddings.weight.shape[::-1], bias=False)
        self.lm_head.weight = self.backbone.embedding.weight


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_live_model_is_loaded_like_its_files(name, tmp_path):
    theirs = random_model(name, vocab_size=32, tie_word_embeddings=True)
    live = MambaLMHeadModel(theirs, MambaConfig(**CONFIGS[name]))
    ours, tokens = HookedSSM.from_pretrained(live), torch.randint(32, (2, 11))
    assert torch.equal(ours(tokens), HookedSSM.from_pretrained(theirs)(tokens))
    assert ours.cfg.model_name == "MambaLMHeadModel"
    before = live.lm_head.weight.clone()
    ours.embed.W_E.zero_()
    assert torch.equal(live.lm_head.weight, before), "weights are copied"
    again = HookedSSM.from_pretrained(live)
    again.save_pretrained(tmp_path)
    assert torch.equal(HookedSSM.from_pretrained(tmp_path)(tokens), again(tokens))


def test_norms_are_layer_norms_where_the_config_says_so(tmp_path):
    weights = weights_of(random_model("mamba", vocab_size=32))
    norms = [name for name in weights if "norm" in name]
    assert len(norms) == 3
    weights |= {name.replace(".weight", ".bias"): torch.randn(24) for name in norms}
    write(tmp_path, MAMBA | {"rms_norm": False}, weights, "safetensors")
    ours = HookedSSM.from_pretrained(tmp_path)
    assert not isinstance(ours.ln_final, RMSNorm) and isinstance(ours.blocks[1].ln1, LayerNorm)
    assert torch.equal(ours.ln_final.b, weights["backbone.norm_f.bias"])
    assert torch.equal(ours.blocks[1].ln1.b, weights["backbone.layers.1.norm.bias"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MAMBA | {"d_intermediate": 64}, "d_intermediate=64 of this mamba_ssm model"),
        (MAMBA | {"attn_layer_idx": [1]}, r"attn_layer_idx=\[1\] of this"),
        (MAMBA | {"sliding": 3}, "sliding=3 of this mamba_ssm model is not known"),
        (MAMBA | {"vocab_size": 0}, "'vocab_size' .* must be a whole number of at least 1, got 0"),
        (MAMBA | {"ssm_cfg": {"layer": "Mamba3"}}, "must be 'Mamba1' or 'Mamba2', got 'Mamba3'"),
        (MAMBA | {"ssm_cfg": {"bias": True}}, "bias=True of this mamba_ssm Mamba1"),
        (MAMBA | {"ssm_cfg": {"headdim": 12}}, "headdim=12 of this mamba_ssm Mamba1 is not known"),
        (MAMBA2 | {"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}}, "rmsnorm=False of this"),
        (MAMBA2 | {"ssm_cfg": {"layer": "Mamba2", "dt_limit": [0.0, 0.1]}}, r"dt_limit=\[0.0, 0.1\] of this"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_named(config, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        HookedSSM.from_pretrained(tmp_path)
