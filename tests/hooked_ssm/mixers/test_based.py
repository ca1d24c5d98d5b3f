"""What is Based's own: what it refuses, its normaliser, its two states."""

import pytest
import torch

from hooked_ssm.mixers import BasedConfig

from .case import close, random_input, random_tokens
from .naive_based import CASES, based

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_a_wrong_option_is_refused():
    with pytest.raises(ValueError, match="Based's feature_dim must be at least 1, got 0"):
        BasedConfig(feature_dim=0)


@every_case
def test_rows_of_its_matrix_are_weights(case):
    model = case.model()
    _, cache = model.run_with_cache(random_tokens())
    for layer in range(2):
        matrix = model.blocks[layer].mixer.effective_attention(cache.of_mixer(layer))
        assert (matrix >= 0).all() and (matrix.sum(-1) - 1).abs().max() < 1e-12
        assert close(cache[f"blocks.{layer}.mixer.hook_pattern"], matrix, case.tolerance)


@every_case
def test_the_normaliser_and_its_sum_are_those_of_the_keys(case):
    model = case.model(n_layers=1)
    _, cache = model.run_with_cache(random_tokens())
    q, k, z, normalizer = (
        cache[f"blocks.0.mixer.hook_{name}"]
        for name in ("q_features", "k_features", "ssm_norm_state", "normalizer")
    )
    assert close(z, k.cumsum(1), case.tolerance)
    assert close(normalizer, (q * z).sum(-1), case.tolerance)
    assert (normalizer >= 0.5).all()


@every_case
@pytest.mark.parametrize("pieces", [[9], [5, 4], [2, 2, 5], [1] * 9], ids=str)
def test_a_sum_that_is_set_is_carried_on_and_the_memory_is_not_touched(case, pieces):
    """Values and gradients, in one piece and in several."""
    model, u = case.model(n_layers=1), random_input().requires_grad_()
    mixer = model.blocks[0].mixer
    z = based(mixer, u)["hook_ssm_norm_state"].detach()
    value = (2 * z[:, 3] + 1).requires_grad_()
    begun, memories = 0, []

    def in_the_model(sums, hook):
        sums = sums.clone()
        if begun <= 3 < begun + sums.shape[1]:
            sums[:, 3 - begun] = value
        return sums

    def in_the_loop(name, t, tensor):
        return value if (name, t) == ("hook_ssm_norm_state", 3) else tensor

    state, outputs = None, []
    hooks = [
        ("blocks.0.mixer.hook_ssm_norm_state", in_the_model),
        ("blocks.0.mixer.hook_ssm_state", lambda states, hook: memories.append(states.detach().clone())),
    ]
    with model.hooks(fwd_hooks=hooks):
        for piece in u.split(pieces, dim=1):
            out, state = mixer.extend(piece, state)
            outputs.append(out)
            begun += piece.shape[1]
    got, wanted = torch.cat(outputs, dim=1), based(mixer, u, in_the_loop)
    assert close(got, wanted["out"], case.tolerance)
    assert close(torch.cat(memories, dim=1), based(mixer, u)["hook_ssm_state"].detach(), case.tolerance)
    weight = random_input().cos()
    inputs = [u, value, *mixer.parameters()]
    ours = torch.autograd.grad((got * weight).sum(), inputs)
    theirs = torch.autograd.grad((wanted["out"] * weight).sum(), inputs)
    for grad, naive_grad in zip(ours, theirs, strict=True):
        assert close(grad, naive_grad, case.tolerance)


def test_a_pattern_is_of_a_whole_document():
    model = CASES[0].model(n_layers=1)
    _, state = model.step(torch.tensor([[1, 2]]))
    with model.hooks(fwd_hooks=[("blocks.0.mixer.hook_pattern", lambda pattern, hook: None)]):
        with pytest.raises(ValueError, match="hook_pattern of Based fires on whole documents"):
            model.step(torch.tensor([[3]]), state)
