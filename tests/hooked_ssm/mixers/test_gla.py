"""What is gated linear attention's own: what it refuses, and edits of its decay."""

import pytest
import torch

from hooked_ssm import HookedSSM, HookedSSMConfig
from hooked_ssm.mixers import GLAConfig

from .case import close, random_input
from .naive_gla import CASES, gla


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expand_k": 0.0}, "GLA's expand_k must be positive, got 0.0"),
        ({"expand_v": -1.0}, "GLA's expand_v must be positive, got -1.0"),
        ({"gate_logit_normalizer": 0.0}, "gate_logit_normalizer must be positive, got 0.0"),
        ({"gate_low_rank": 0}, "gate_low_rank must be at least 1, got 0"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GLAConfig(**options)


@pytest.mark.parametrize("option", ["expand_k", "expand_v"])
def test_a_head_of_broken_width_is_refused(option):
    cfg = HookedSSMConfig(
        d_model=6, n_layers=1, d_vocab=5, n_heads=2, mixers=GLAConfig(**({"expand_k": 1.0} | {option: 0.5}))
    )
    with pytest.raises(
        ValueError, match=rf"{option} \* d_head must be a whole number, at least 1, got 0.5 \* 3"
    ):
        HookedSSM(cfg)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("value", [0.0, -0.5])
def test_a_decay_may_be_set_to_zero_or_below(case, value):
    """0 makes the memory forget all that came before."""
    model, u = case.model(n_layers=1), random_input()
    mixer = model.blocks[0].mixer

    def set_decay(decay, hook):
        decay[:, 4] = value

    def in_the_loop(name, t, decay):
        return torch.full_like(decay, value) if (name, t) == ("hook_ssm_decay", 4) else decay

    with model.hooks(fwd_hooks=[("blocks.0.mixer.hook_ssm_decay", set_decay)]):
        got = mixer(u)
    assert close(got, gla(mixer, u, in_the_loop)["out"], case.tolerance)
    if value == 0:
        assert close(got[:, 4:], mixer(u[:, 4:]), case.tolerance)
        assert not close(got[:, 4:], mixer(u)[:, 4:], 1e-3)


def test_the_matrix_of_an_edited_run_is_the_edited_one():
    case = CASES[1]
    model = case.model(n_layers=1)

    def negate(decay, hook):
        return torch.cat([decay[:, :3], -decay[:, 3:4], decay[:, 4:]], dim=1)

    with model.hooks(fwd_hooks=[("blocks.0.mixer.hook_ssm_decay", negate)]):
        _, cache = model.run_with_cache(torch.arange(9)[None])
    mixer = model.blocks[0].mixer
    activations = cache.of_mixer(0)
    product, read = case.read(activations, mixer, mixer.effective_attention(activations))
    assert close(product, read, case.tolerance)


def test_a_pattern_is_of_a_whole_document():
    model = CASES[0].model(n_layers=1)
    _, state = model.step(torch.tensor([[1, 2]]))
    with model.hooks(fwd_hooks=[("blocks.0.mixer.hook_pattern", lambda pattern, hook: None)]):
        with pytest.raises(ValueError, match="hook_pattern of GLA fires on whole documents"):
            model.step(torch.tensor([[3]]), state)
