"""Direct path patching, against the one head recomputed by hand from a residual stream it alone sees.

For a head's q, k or v the hand way is: run the layer once more on the residual stream plus what the source
head would have written, and put what that run computes for this head, and only that, into the corrupted run.
"""

import pytest
import torch
from torch import Tensor
from transformer_lens import patching

from hooked_ssm.mixers import Attention, GatedDeltaNet, Mamba

# What each fork carries: C through q, B through k, and all else through v, in Mamba x, dt and the gate.
CARRIES = {"q": ["hook_q"], "k": ["hook_k"]}
THROUGH_V = {
    Attention: ["hook_v"],
    Mamba: ["hook_v", "hook_gate", "hook_ssm_dt"],
    GatedDeltaNet: ["hook_v", "hook_gate", "hook_beta", "hook_ssm_decay"],
}


def put_head(values: Tensor, head: int, heads: int):
    """A hook that sets one head; in tensors without a head axis, the head's group of channels."""

    def by_head(x):
        return x if x.ndim == 4 else x.unflatten(-1, (heads, -1))

    def hook(activation, hook):
        edited = by_head(activation).clone()
        edited[:, :, head] = by_head(values)[:, :, head]
        return edited.reshape(activation.shape)

    return hook


def by_hand(case, delta: Tensor, layer: int, head: int, component: str) -> float:
    model = case.model
    mixer = model.blocks[layer].mixer
    names = THROUGH_V[type(mixer)] if component == "v" else CARRIES[component]
    names = [f"blocks.{layer}.mixer.{name}" for name in names]
    resid = case.cached(case.corrupted)["resid_pre", layer]
    with torch.no_grad():
        _, moved = model.run_with_cache(
            resid + delta, start_at_layer=layer, stop_at_layer=layer + 1, names_filter=names
        )
    return case.measure([(name, put_head(moved[name], head, model.cfg.n_heads)) for name in names])


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_a_path_is_the_destination_head_recomputed_by_hand(case, component):
    model, src_head = case.model, 1
    clean, corrupted = case.clean_cache, case.cached(case.corrupted)
    with torch.no_grad():
        swept = patching.get_act_patch_direct_path(
            model, case.corrupted, clean, corrupted, case.metric, 0, src_head, component, verbose=False
        )
    W_O = model.blocks[0].mixer.W_O.detach()[src_head]
    delta = (clean["z", 0] - corrupted["z", 0])[:, :, src_head] @ W_O
    expected = torch.zeros_like(swept)
    for layer in range(1, model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            expected[layer, head] = by_hand(case, delta, layer, head, component)
    torch.testing.assert_close(swept, expected, rtol=1e-5, atol=1e-5)
    assert (swept[1:] - case.measure([])).abs().max() > 1e-3


@pytest.mark.parametrize("component", ["q", "v"])
def test_all_sources_stack_the_sweeps_of_each(case, component):
    model = case.model
    clean, corrupted = case.clean_cache, case.cached(case.corrupted)
    arguments = model, case.corrupted, clean, corrupted, case.metric
    with torch.no_grad():
        swept = patching.get_act_patch_direct_path_all_sources(*arguments, component, verbose=False)
        alone = patching.get_act_patch_direct_path(*arguments, 0, 1, component, verbose=False)
    torch.testing.assert_close(swept[0, 1], alone)
    assert (swept[-1] == 0).all()


def test_all_paths_out_of_a_head_together_are_the_head(case):
    """The forks leave no reader of the residual stream out: adding a write to all is writing it."""
    model = case.model
    clean, corrupted = case.clean_cache, case.cached(case.corrupted)
    W_O = model.blocks[0].mixer.W_O.detach()[0]
    delta = (clean["z", 0] - corrupted["z", 0])[:, :, 0] @ W_O
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    try:
        last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        readers = [(last, lambda x, hook: x + delta)]
        for layer in range(model.cfg.n_layers):
            if layer > 0 or not model.cfg.parallel_attn_mlp:
                readers.append((f"blocks.{layer}.hook_mlp_in", lambda x, hook: x + delta))
            for letter in "qkv":
                if layer > 0:
                    name = f"blocks.{layer}.attn.hook_{letter}_input"
                    readers.append((name, lambda x, hook: x + delta.unsqueeze(2)))
        through_paths = case.measure(readers)
    finally:
        model.set_use_split_qkv_input(False)
        model.set_use_hook_mlp_in(False)
    through_head = case.measure([("blocks.0.hook_attn_out", lambda x, hook: x + delta)])
    assert through_paths == pytest.approx(through_head, rel=1e-10)
    assert abs(through_head - case.measure([])) > 1e-2
