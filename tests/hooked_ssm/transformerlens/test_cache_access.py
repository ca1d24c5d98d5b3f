"""TransformerLens's shorthands for cached activations, and its cuts through a cache."""

import pytest
import torch

from hooked_ssm import HookedCache


def same(one, other):
    return one.shape == other.shape and torch.equal(one, other)


def test_shorthands_find_the_hook(case):
    cache, last = case.clean_cache, case.model.cfg.n_layers - 1
    expected = {
        ("resid_pre", 0): "blocks.0.hook_resid_pre",
        ("resid_post", -1): f"blocks.{last}.hook_resid_post",
        ("attn_out", 1): "blocks.1.hook_mixer_out",
        ("mixer_out", 1): "blocks.1.hook_mixer_out",
        ("z", 1): "blocks.1.mixer.hook_z",
        ("z", 1, "attn"): "blocks.1.mixer.hook_z",
        ("value", 1): "blocks.1.mixer.hook_v",
        ("scale", 1, "ln1"): "blocks.1.ln1.hook_scale",
        ("scale",): "ln_final.hook_scale",
        ("embed",): "hook_embed",
        "embed": "hook_embed",
        "k1": "blocks.1.mixer.hook_k",
        "blocks.0.attn.hook_q": "blocks.0.mixer.hook_q",
        "blocks.0.hook_q": "blocks.0.mixer.hook_q",
    }
    if not case.model.cfg.attn_only:
        expected["post", 0] = "blocks.0.mlp.hook_post"
    for key, name in expected.items():
        assert same(cache[key], cache.cache_dict[name]), key
        assert key in cache, key
    for key in (("q_input", 0), ("result", 0), "blocks.0.hook_nothing"):
        assert key not in cache


def test_block_level_shorthands_reach_ssm_quantities(ssm_case):
    cache = ssm_case.clean_cache
    for name in ("ssm_state", "ssm_write", "ssm_decay", "conv", "conv_taps", "gate", "ssm_B"):
        assert same(cache[name, 0], cache.cache_dict[f"blocks.0.mixer.hook_{name}"])


def test_an_activation_that_was_not_kept_raises_and_says_so(case):
    cache = case.cached(case.clean, names_filter="hook_embed")
    with pytest.raises(
        KeyError, match="'blocks.0.mixer.hook_z' is a hook of this model, but this cache does not"
    ):
        cache["z", 0]


def test_stack_activation_stacks_layers(case):
    cache = case.clean_cache
    stacked = cache.stack_activation("mixer_out")
    assert same(stacked, torch.stack([cache["mixer_out", layer] for layer in range(case.model.cfg.n_layers)]))
    assert same(cache.stack_activation("attn_out", layer=1), cache["attn_out", 0][None])


@pytest.mark.parametrize(("batch_slice", "cut"), [(1, 1), ((0, 1), slice(0, 1)), ([1, 0], [1, 0])], ids=str)
def test_slicing_the_batch_keeps_the_kind_of_cache(case, batch_slice, cut):
    cache = case.clean_cache
    sliced = cache.apply_slice_to_batch_dim(batch_slice)
    assert isinstance(sliced, HookedCache) and sliced.has_batch_dim == (cut != 1)
    for name, activation in cache.items():
        assert same(sliced[name], activation[cut])
    assert same(sliced["attn_out", 0], cache["blocks.0.hook_mixer_out"][cut])


def test_gradients_have_shorthands_too(case):
    _, cache = case.model.run_with_cache(case.clean, return_type="loss", incl_bwd=True)
    case.model.zero_grad()
    assert same(cache["blocks.0.attn.hook_z_grad"], cache.cache_dict["blocks.0.mixer.hook_z_grad"])
    assert same(cache["resid_pre_grad", 1], cache.cache_dict["blocks.1.hook_resid_pre_grad"])
    assert same(cache["z_grad", 1], cache.cache_dict["blocks.1.mixer.hook_z_grad"])
