"""run_with_cache: every option of TransformerLens's, on every hook."""

import pytest
import torch
from transformer_lens.utilities import Slice

from hooked_ssm import HookedCache


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_every_hook_that_can_fire_is_cached_with_its_declared_axes(case):
    cache = case.clean_cache
    table = case.model.hook_table()
    assert set(cache.keys()) == set(table[table.unavailable == ""].name)
    for name, activation in cache.items():
        shape = case.model.hook_dict[name].shape.split()
        assert activation.ndim == len(shape), name
        sizes = dict(zip(shape, activation.shape, strict=True))
        for axis in ("pos", "dest", "src"):
            assert sizes.get(axis, case.clean.shape[1]) == case.clean.shape[1], name
        assert sizes["batch"] == case.clean.shape[0], name


def test_caching_changes_no_bit_of_the_output(case):
    with torch.no_grad():
        assert_same(case.model.run_with_cache(case.clean)[0], case.model(case.clean))


@pytest.mark.parametrize("kind", [str, list, tuple, set, "callable"])
def test_names_filters_of_every_kind(case, kind):
    name = "blocks.0.attn.hook_z"
    wanted = {str: name, "callable": lambda n: n == name}
    names_filter = wanted[kind] if kind in wanted else kind([name, "hook_embed"])
    cache = case.cached(case.clean, names_filter=names_filter)
    assert len(cache) == (1 if kind in wanted else 2)
    assert_same(cache[name], case.clean_cache["blocks.0.mixer.hook_z"])
    assert_same(cache["z", 0], cache[name])


def test_the_cache_is_keyed_by_the_names_asked_for(case):
    _, cache = case.model.run_with_cache(
        case.clean, names_filter=["blocks.0.hook_attn_out"], return_cache_object=False
    )
    assert type(cache) is dict and list(cache) == ["blocks.0.hook_attn_out"]


def test_remove_batch_dim(case):
    one = case.clean[:1]
    with_batch, without = case.cached(one), case.cached(one, remove_batch_dim=True)
    assert isinstance(without, HookedCache) and not without.has_batch_dim
    for name, activation in with_batch.items():
        assert_same(without[name], activation[0])
    removed = case.cached(one).remove_batch_dim()
    assert all(torch.equal(removed[name], without[name]) for name in without)
    with pytest.raises(AssertionError, match="batch size 2"):
        case.cached(case.clean, remove_batch_dim=True)
    with pytest.raises(ValueError, match="a batch of 2"), torch.no_grad():
        case.model.run_with_cache(input=case.clean, remove_batch_dim=True)


# An integer keeps the axis, as in TransformerLens's run_with_cache; a `Slice` of one drops it.
CUTS = {
    "integer": (2, [2]),
    "last": (-1, [-1]),
    "range": ((1, 4), slice(1, 4)),
    "list": ([0, 3], [0, 3]),
    "tensor": (torch.tensor([3, 1]), [3, 1]),
    "Slice": (Slice(3), 3),
}


@pytest.mark.parametrize(("pos_slice", "cut"), CUTS.values(), ids=CUTS)
def test_pos_slice_cuts_the_position_axis_of_every_hook(case, pos_slice, cut):
    cache = case.cached(case.clean, pos_slice=pos_slice)
    for name, activation in case.clean_cache.items():
        is_pattern = name.endswith(("pattern", "attn_scores"))
        assert_same(cache[name], activation[:, :, cut] if is_pattern else activation[:, cut])


def test_pos_slice_of_patterns(pattern_case):
    cache, full = pattern_case.cached(pattern_case.clean, pos_slice=(1, 3)), pattern_case.clean_cache
    assert_same(cache["pattern", 1], full["pattern", 1][:, :, 1:3])


def test_gradients_are_those_of_the_loss(case):
    model = case.model
    _, cache = model.run_with_cache(case.clean, return_type="loss", incl_bwd=True)
    model.zero_grad()
    names = [name for name in cache if not name.endswith("_grad")]
    assert {f"{name}_grad" for name in names} <= set(cache.keys())
    live = {}

    def keep(x, hook):
        live[hook.name] = x

    loss = model.run_with_hooks(
        case.clean, return_type="loss", fwd_hooks=[(name, keep) for name in names], reset_hooks_end=True
    )
    gradients = torch.autograd.grad(loss, [live[name] for name in names])
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(cache[f"{name}_grad"], gradient, rtol=1e-10, atol=1e-12, msg=name)
    assert_same(cache["blocks.0.attn.hook_z_grad"], cache["blocks.0.mixer.hook_z_grad"])


def test_activations_can_be_kept_on_another_device(case):
    cache = case.cached(case.clean, device="meta")
    assert all(activation.device.type == "meta" for activation in cache.values())
    moved = case.clean_cache.to("meta")
    assert moved["z", 0].device.type == "meta"


@pytest.mark.parametrize("layer", [1, -1])
def test_stopping_at_a_layer_gives_the_stream_before_it(case, layer):
    with torch.no_grad():
        resid, cache = case.model.run_with_cache(case.clean, stop_at_layer=layer)
    assert_same(resid, case.clean_cache["resid_pre", layer])
    assert "blocks.0.hook_resid_post" in cache and "ln_final.hook_scale" not in cache
    with pytest.raises(KeyError, match="is a hook of this model, but this cache does not hold"):
        cache["ln_final.hook_scale"]


def test_starting_at_a_layer_continues_as_the_whole_run(case):
    full = case.clean_cache
    with torch.no_grad():
        logits, cache = case.model.run_with_cache(full["resid_pre", 1], start_at_layer=1)
        assert_same(logits, case.model(case.clean))
    assert "hook_embed" not in cache and "blocks.0.hook_resid_pre" not in cache
    for name, activation in cache.items():
        assert_same(activation, full[name])


def test_hooks_and_a_cache_together(case):
    """The cache of an edited run holds what came after the edit."""
    hook = "blocks.0.hook_attn_out", lambda x, hook: torch.zeros_like(x)
    with torch.no_grad(), case.model.hooks(fwd_hooks=[hook]):
        _, cache = case.model.run_with_cache(case.clean)
    assert_same(cache["attn_out", 0], torch.zeros_like(cache["attn_out", 0]))
    if not case.model.cfg.parallel_attn_mlp:
        assert_same(cache["resid_mid", 0], cache["resid_pre", 0])
    assert not torch.equal(cache["resid_post", 1], case.clean_cache["resid_post", 1])


def test_inference_mode_changes_nothing(case):
    full = case.clean_cache
    with torch.inference_mode():
        _, cache = case.model.run_with_cache(case.clean)
        hook = "blocks.0.hook_attn_out", lambda x, hook: x.zero_()
        edited = case.metric(case.model.run_with_hooks(case.clean, fwd_hooks=[hook]))
    assert all(torch.equal(cache[name], full[name]) for name in full)
    assert float(edited) == case.measure([hook], case.clean)
