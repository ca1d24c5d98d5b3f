"""TransformerLens's cache methods for recurrent layers: their states and their causal matrices."""

import pytest
import torch

from hooked_ssm.mixers import Attention, Mamba

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def mamba_layers(model):
    return [layer for layer, block in enumerate(model.blocks) if isinstance(block.mixer, Mamba)]


def by_layer(model, result):
    """What comes back for all layers: stacked if all are recurrent, else by layer."""
    layers = mamba_layers(model)
    if len(layers) == model.cfg.n_layers:
        assert isinstance(result, torch.Tensor) and len(result) == len(layers)
    else:
        assert isinstance(result, dict) and list(result) == layers
    return {layer: result[layer] for layer in layers}


def test_recurrent_layers_are_found(ssm_case):
    cache = ssm_case.clean_cache
    assert cache.ssm_layers() == mamba_layers(ssm_case.model)
    assert cache.ssm_layers(mixer_type=Mamba) == mamba_layers(ssm_case.model)
    assert cache.ssm_layers(mixer_type=Attention) == []


@pytest.mark.parametrize("has_batch_dim", [True, False])
@pytest.mark.parametrize("time_step", [None, 0, 3, -1])
def test_computed_states_are_the_states(ssm_case, has_batch_dim, time_step):
    case = ssm_case
    cache = case.clean_cache if has_batch_dim else case.cached(case.clean[:1], remove_batch_dim=True)
    states = by_layer(case.model, cache.compute_ssm_state(time_step=time_step))
    for layer, computed in states.items():
        expected = cache["ssm_state", layer]
        if time_step is not None:
            expected = expected.select(1 if has_batch_dim else 0, time_step)
        torch.testing.assert_close(computed, expected, **CLOSE)
        alone = cache.compute_ssm_state(layer, time_step)
        torch.testing.assert_close(alone, computed, rtol=0, atol=0)


def test_states_can_be_computed_without_having_been_cached(ssm_case):
    names = [f"blocks.0.mixer.hook_{name}" for name in ("x", "ssm_dt", "ssm_B")]
    cache = ssm_case.cached(ssm_case.clean, names_filter=names)
    torch.testing.assert_close(cache.compute_ssm_state(0), ssm_case.clean_cache["ssm_state", 0], **CLOSE)


@pytest.mark.parametrize("has_batch_dim", [True, False])
def test_the_effective_attention_takes_values_to_the_read(ssm_case, has_batch_dim):
    case = ssm_case
    cache = case.clean_cache if has_batch_dim else case.cached(case.clean[:1], remove_batch_dim=True)
    for layer, matrix in by_layer(case.model, cache.compute_ssm_effective_attention()).items():
        x, D = cache["x", layer], case.model.blocks[layer].mixer.D.detach()
        read = torch.einsum("...cij,...jc->...ic", matrix, x)
        torch.testing.assert_close(read + D * x, cache["y", layer], **CLOSE)
        future = torch.ones(matrix.shape[-2:], dtype=torch.bool).triu(1)
        assert (matrix[..., future] == 0).all()
        unscaled = cache.compute_ssm_effective_attention(layer, include_dt_scaling=False)
        dt = cache["ssm_dt", layer].transpose(-1, -2).unsqueeze(-2)
        torch.testing.assert_close(unscaled * dt, matrix, **CLOSE)


def test_negative_layers_count_from_the_end(ssm_case):
    cache, last = ssm_case.clean_cache, ssm_case.model.cfg.n_layers - 1
    torch.testing.assert_close(cache.compute_ssm_state(-1), cache.compute_ssm_state(last), rtol=0, atol=0)


def test_layers_without_a_state_are_refused(rebuilt):
    hybrid, attention = rebuilt("hybrid"), rebuilt("attention")
    for method in ("compute_ssm_state", "compute_ssm_effective_attention"):
        with pytest.raises(TypeError, match=r"layer 1 has no .*mixer.*; layers that have one: \[0, 2\]"):
            getattr(hybrid.clean_cache, method)(1)
        with pytest.raises(RuntimeError, match="no layer with a .*mixer"):
            getattr(attention.clean_cache, method)()
    assert attention.clean_cache.ssm_layers() == []
