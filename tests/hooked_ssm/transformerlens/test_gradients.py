"""TransformerLens's gradients of activations: at every hook, what a small change of it does to the metric."""

import pytest
import torch
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient


def derivative(case, name, direction, tokens):
    """The metric's derivative as the hook's value is really moved, by central differences."""
    step = 1e-6
    ahead, behind = (case.measure([(name, lambda x, hook: x + s * direction)], tokens) for s in (step, -step))  # noqa: B023
    return (ahead - behind) / (2 * step)


def test_gradients_at_every_hook_are_those_of_edits(case):
    """At a recurrent state that is the total derivative: through the read and through every later state."""
    tokens = case.clean[:1]
    table = case.model.hook_table()
    names = list(table[table.unavailable == ""].name)
    result = cache_activation_and_gradient(case.model, tokens, case.metric, names)
    assert set(result.activations) == set(names) and float(result.metric) == pytest.approx(
        case.measure([], tokens)
    )
    generator = torch.Generator().manual_seed(0)
    for name in (name for name in names if not name.startswith("blocks.2.")):  # as blocks.0
        activation, gradient = result.activations[name], result.gradients[name]
        direction = torch.randn(activation.shape, generator=generator, dtype=activation.dtype)
        if name.endswith("attn_scores"):
            direction = direction.masked_fill(activation == -torch.inf, 0)
        if name.endswith(("ssm_state", "ssm_write")):  # moved at one position, later ones grow out of it
            direction[:, [0, 1, 3, 4]] = 0
        expected = derivative(case, name, direction, tokens)
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-7), name


def test_the_gradient_at_a_state_reaches_beyond_its_own_position(ssm_case):
    """Only logits at the last position are read, and only the first state is moved."""
    case, name, tokens = ssm_case, "blocks.0.hook_ssm_state", ssm_case.clean[:1]
    last = lambda logits: (logits[:, -1] * case.readout[-1]).sum()
    result = cache_activation_and_gradient(case.model, tokens, last, name)
    gradient = result.gradients[name]
    direction = torch.zeros_like(gradient)
    direction[:, 1, 2, 1] = 1.0
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            hook = name, lambda x, hook: x + step * direction  # noqa: B023
            values.append(float(last(case.model.run_with_hooks(tokens, fwd_hooks=[hook]))))
    expected = (values[0] - values[1]) / 2e-5
    assert float(gradient[0, 1, 2, 1]) == pytest.approx(expected, rel=1e-5)
    assert abs(expected) > 1e-4


def test_gradients_alone_are_gradients_together(ssm_case):
    """A state hook alone, the only thing attached, has the same gradient as beside all others."""
    case, name = ssm_case, "blocks.0.mixer.hook_ssm_state"
    alone = cache_activation_and_gradient(case.model, case.clean, case.metric, name)
    together = cache_activation_and_gradient(
        case.model,
        case.clean,
        case.metric,
        [name, "hook_embed", "blocks.0.hook_y", "blocks.1.hook_resid_pre"],
    )
    torch.testing.assert_close(alone.gradients[name], together.gradients[name], rtol=1e-12, atol=1e-12)


def test_gradients_at_patterns(pattern_case):
    case, tokens = pattern_case, pattern_case.clean[:1]
    for layer in range(2):
        name = f"blocks.{layer}.attn.hook_pattern"
        result = cache_activation_and_gradient(case.model, tokens, case.metric, name)
        direction = torch.randn_like(result.activations[name])
        expected = derivative(case, name, direction, tokens)
        assert float((result.gradients[name] * direction).sum()) == pytest.approx(
            expected, rel=1e-6, abs=1e-7
        )


def test_no_gradient_reaches_the_parameters(case):
    cache_activation_and_gradient(case.model, case.clean, case.metric)
    assert all(p.grad is None for p in case.model.parameters())


@pytest.mark.parametrize("name", ["blocks.0.attn.hook_result", "blocks.0.attn.hook_q_input"])
def test_hooks_that_would_not_fire_are_refused(case, name):
    with pytest.raises(ValueError, match="would not fire"):
        cache_activation_and_gradient(case.model, case.clean, case.metric, name)
