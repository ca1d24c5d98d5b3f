"""What TransformerLens itself reserves for its bridges: its own errors say so."""

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import EdgeAttributionConfig, JacobianLens, faithfulness


def test_the_jacobian_lens_is_for_bridges_only(case):
    assert not isinstance(case.model, TransformerBridge)
    with pytest.raises(TypeError, match="supports TransformerBridge only"):
        JacobianLens.fit(case.model, ["a b c"], corpus="letters")


def test_a_fitted_jacobian_lens_refuses_other_models(case):
    d_model = case.model.cfg.d_model
    lens = JacobianLens({0: torch.eye(d_model)}, n_prompts=1, d_model=d_model)
    with pytest.raises(TypeError, match="supports TransformerBridge only"):
        lens.validate_model(case.model)
    with pytest.raises(TypeError, match="supports TransformerBridge only"):
        lens.readout(case.model, case.clean)


def test_integrated_gradients_are_not_in_transformerlens():
    with pytest.raises(NotImplementedError, match="ig_steps>1"):
        EdgeAttributionConfig(ig_steps=5)


def test_faithfulness_takes_one_pair(case):
    with pytest.raises(ValueError, match="one clean/corrupt pair at a time"):
        faithfulness(case.model, case.clean, case.corrupted, case.metric, [])


def test_heads_of_different_widths_do_not_stack(rebuilt):
    """In a hybrid, Mamba's heads are wider than attention's: activations by head stack within a kind only."""
    cache = rebuilt("hybrid").clean_cache
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        cache.stack_activation("z")
    assert cache.stack_head_results().shape[0] == 3 * 2
