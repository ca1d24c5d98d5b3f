"""What TransformerLens asks a model to have, and that its flags change what is seen, not what is computed."""

import copy
from itertools import combinations

import pytest
import torch
from transformer_lens import ActivationCache, HookedRootModule, model_protocol
from transformer_lens.config import TransformerLensConfig

import hooked_ssm

FLAGS = ("attn_result", "split_qkv_input", "hook_mlp_in", "attn_in")


@pytest.mark.parametrize(
    "protocol", ["TransformerLensModel", "TrainableTransformerLensModel", "TransformerLensModelWithWeights"]
)
def test_the_model_has_transformerlens_protocols(case, protocol):
    assert isinstance(case.model, getattr(model_protocol, protocol))


def test_model_config_and_cache_are_transformerlens_classes(case):
    assert isinstance(case.model, HookedRootModule)
    assert isinstance(case.model.cfg, TransformerLensConfig)
    assert isinstance(case.clean_cache, ActivationCache)
    assert case.model.cfg.n_key_value_heads is None


def test_unembedding_and_its_bias_give_the_logits_from_the_final_norm(case):
    model = case.model
    final = case.clean_cache["ln_final.hook_normalized"]
    with torch.no_grad():
        torch.testing.assert_close(final @ model.W_U + model.b_U, model(case.clean), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "flags",
    [flags for n in (1, 2) for flags in combinations(FLAGS, n)],
    ids=" and ".join,
)
def test_flags_change_no_output(case, flags):
    model = case.model
    plain = case.measure([])
    try:
        if {"split_qkv_input", "attn_in"} <= set(flags):
            model.set_use_split_qkv_input(True)
            with pytest.raises(ValueError, match="exclude each other"):
                model.set_use_attn_in(True)
            return
        for flag in flags:
            getattr(model, f"set_use_{flag}")(True)
        assert case.measure([]) == pytest.approx(plain, rel=1e-12)
    finally:
        for flag in flags:
            getattr(model, f"set_use_{flag}")(False)


def test_copies_have_hooks_of_their_own(case):
    twin = copy.deepcopy(case.model)
    seen = []
    hook = "blocks.0.hook_attn_out", lambda x, hook: seen.append(x)
    twin.run_with_hooks(case.clean, fwd_hooks=[hook])
    assert len(seen) == 1
    assert twin.hook_dict["blocks.0.hook_attn_out"] is twin.blocks[0].hook_mixer_out
    assert twin.hook_dict["blocks.0.hook_attn_out"] is not case.model.blocks[0].hook_mixer_out
    torch.testing.assert_close(twin(case.clean), case.model(case.clean), rtol=0, atol=0)


def test_accumulated_bias_is_what_biases_write_before_a_layer(case):
    """The residual stream less what heads and neurons write is the embedding and the biases."""
    model, cache = case.model, case.clean_cache
    n_layers = model.cfg.n_layers
    before_mlp = not model.cfg.parallel_attn_mlp  # else the MLP's input has none of its own layer's biases
    for layer in (0, 1):
        same = torch.equal(model.accumulated_bias(layer, mlp_input=True), model.accumulated_bias(layer))
        assert same == (not before_mlp or not model.blocks[layer].mixer.b_O.any())
    for layer, mlp_input in [(0, False), (0, before_mlp), (1, False), (1, before_mlp), (n_layers, False)]:
        expected = cache["embed"] + (cache["pos_embed"] if "pos_embed" in cache else 0)
        for index in range(n_layers):
            if index < layer or (index == layer and mlp_input):
                mixer = model.blocks[index].mixer
                expected = expected + torch.einsum("bphd,hdm->bpm", cache["z", index], mixer.W_O.detach())
            if index < layer and model.blocks[index].mlp is not None:
                expected = expected + cache["post", index] @ model.blocks[index].mlp.W_out.detach()
        resid = cache["resid_mid", layer] if mlp_input else cache.accumulated_resid(layer)[-1]
        bias = model.accumulated_bias(layer, mlp_input).detach()
        torch.testing.assert_close(resid, expected + bias, rtol=1e-12, atol=1e-12)


def test_blocks_are_found_by_what_they_have(case):
    model = case.model
    assert [layer for layer, _ in model.blocks_with("mixer")] == list(range(model.cfg.n_layers))
    assert len(model.blocks_with("mlp")) == (0 if model.cfg.attn_only else model.cfg.n_layers)
    assert model.blocks_with("linear_attn") == []
    for _, block in model.blocks_with("attn"):
        assert isinstance(block.mixer, hooked_ssm.mixers.Attention)
