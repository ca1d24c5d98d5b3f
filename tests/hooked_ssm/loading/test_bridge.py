"""A loaded model and TransformerLens's bridge on the same one: the same tensors, under the names that
docs/pretrained.md says."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from hooked_ssm import HookedSSM

from .sources import D_VOCAB, random_model

LENGTH = 7
AROUND = {
    "hook_embed": "hook_embed",
    "blocks.1.hook_resid_pre": "blocks.1.hook_resid_pre",
    "blocks.1.hook_mixer_out": "blocks.1.hook_mixer_out",
    "blocks.1.hook_resid_post": "blocks.1.hook_resid_post",
    "ln_final.hook_scale": "ln_final.hook_scale",
    "ln_final.hook_normalized": "ln_final.hook_out",
}
NORM = {"ln1.hook_scale": "norm.hook_scale", "ln1.hook_normalized": "norm.hook_out"}
GPT2 = (
    *("mixer.hook_q", "mixer.hook_k", "mixer.hook_v", "mixer.hook_pattern", "mixer.hook_z", "mlp.hook_pre"),
    *("mlp.hook_post", "hook_mlp_out", "hook_resid_mid", "ln1.hook_scale", "ln2.hook_scale"),
)


@torch.no_grad()
def caches(name: str, architecture: str) -> tuple[HookedSSM, dict[str, Tensor], dict[str, Tensor]]:
    theirs = random_model(name)
    ours = HookedSSM.from_pretrained(theirs)  # before the bridge takes its modules apart
    bridge = build_bridge_from_module(theirs, architecture, hf_config=theirs.config)
    for block in bridge.blocks:
        if hasattr(block, "mixer"):
            block.mixer.eager_scan = True
    tokens = torch.randint(D_VOCAB, (2, LENGTH))
    return (
        ours,
        ours.run_with_cache(tokens)[1].cache_dict,
        bridge.run_with_cache(tokens, use_cache=False)[1].cache_dict,
    )


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def in_block(names: dict[str, str]) -> dict[str, str]:
    return {f"blocks.1.{ours}": f"blocks.1.{theirs}" for ours, theirs in names.items()}


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba"])
def test_mamba_has_the_bridges_tensors(name):
    ours, a, b = caches(name, {"mamba": "MambaForCausalLM", "falcon_mamba": "FalconMambaForCausalLM"}[name])
    for mine, theirs in (AROUND | in_block(NORM | {"mixer.hook_x": "mixer.x_proj.hook_in"})).items():
        close(a[mine], b[theirs])
    a, b = (
        {k.removeprefix("blocks.1.mixer."): v for k, v in cache.items() if "blocks.1.mixer." in k}
        for cache in (a, b)
    )
    close(torch.cat([a["hook_conv_in"], a["hook_gate"]], dim=-1), b["in_proj.hook_out"])
    close(a["hook_conv"], b["conv1d.hook_out"][:, :, :LENGTH].mT)
    close(a["hook_ssm_dt"], F.softplus(b["dt_proj.hook_out"]))
    close(b["hook_ssm_dt"], b["dt_proj.hook_out"])
    close(a["hook_z"].flatten(2), b["out_proj.hook_in"])
    for state in ("hook_ssm_write", "hook_ssm_state"):
        close(a[state], b[state].transpose(1, 2))
    if name == "mamba":  # Falcon-Mamba has norms in between
        mixer = ours.blocks[1].mixer
        _, B, C = b["x_proj.hook_out"].split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
        close(a["hook_ssm_B"], B)
        close(a["hook_ssm_C"], C)


def test_mamba2_has_the_bridges_tensors():
    _, a, b = caches("mamba2", "Mamba2ForCausalLM")
    inner = {"mixer.hook_gate": "mixer.inner_norm.hook_gate", "mixer.hook_y": "mixer.inner_norm.hook_in"}
    for mine, theirs in (AROUND | in_block(NORM | inner)).items():
        close(a[mine], b[theirs])
    a, b = (
        {k.removeprefix("blocks.1.mixer."): v for k, v in cache.items() if "blocks.1.mixer." in k}
        for cache in (a, b)
    )
    close(torch.cat([a["hook_gate"], a["hook_conv_in"]], dim=-1), b["in_proj.hook_out"][..., : 48 + 68])
    close(a["hook_conv"], b["conv1d.hook_out"][:, :, :LENGTH].mT)
    close(a["hook_z"].flatten(2), b["out_proj.hook_in"])
    for state in ("hook_ssm_write", "hook_ssm_state"):
        close(a[state], b[state].mT)


def test_gpt2_has_the_bridges_tensors():
    _, a, b = caches("gpt2", "GPT2LMHeadModel")
    around = {k: v for k, v in AROUND.items() if k != "blocks.1.hook_mixer_out"}
    norms = {f"ln{i}.hook_normalized": f"ln{i}.hook_out" for i in (1, 2)}
    same = {name: name.replace("mixer.", "attn.") for name in GPT2} | {"hook_mixer_out": "hook_attn_out"}
    for mine, theirs in (around | in_block(norms | same)).items():
        close(a[mine], b[theirs])
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    close(a["blocks.1.mixer.hook_attn_scores"][..., causal], b["blocks.1.attn.hook_attn_scores"][..., causal])


@pytest.mark.parametrize("name", ["gpt_neox", "gpt_neox, one after the other"])
def test_gpt_neox_has_the_bridges_tensors(name):
    _, a, b = caches(name, "GPTNeoXForCausalLM")
    around = {k: v for k, v in AROUND.items() if k != "blocks.1.hook_mixer_out"}
    norms = {f"ln{i}.hook_normalized": f"ln{i}.hook_out" for i in (1, 2)}
    names = list(GPT2)
    if name == "gpt_neox":  # mixer and MLP side by side
        names.remove("hook_resid_mid")
        assert "blocks.1.hook_resid_mid" not in a and "blocks.1.hook_resid_mid" not in b
    assert "blocks.1.attn.hook_rot_q" not in b  # compared with transformers' own keys in test_transformers.py
    same = {name: name.replace("mixer.", "attn.") for name in names} | {"hook_mixer_out": "hook_attn_out"}
    for mine, theirs in (around | in_block(norms | same)).items():
        close(a[mine], b[theirs])
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    close(a["blocks.1.mixer.hook_attn_scores"][..., causal], b["blocks.1.attn.hook_attn_scores"][..., causal])
