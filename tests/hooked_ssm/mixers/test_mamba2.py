"""What is Mamba-2's own: what it refuses, its heads, its matrix."""

import pytest
import torch

from hooked_ssm import HookedSSM, HookedSSMConfig, zoo
from hooked_ssm.mixers import Mamba2Config

from .case import close, random_tokens
from .naive_mamba2 import CASES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "Mamba2's d_state must be at least 1, got 0"),
        ({"d_conv": -1}, "Mamba2's d_conv must be at least 0, got -1"),
        ({"expand": 0}, "Mamba2's expand must be at least 1, got 0"),
        ({"n_groups": 0}, "Mamba2's n_groups must be at least 1, got 0"),
        ({"A_min": 0.0}, "A_min must be positive and at most A_max, got 0.0 and 16.0"),
        ({"dt_min": 0.2}, "dt_min must be positive and at most dt_max, got 0.2 and 0.1"),
        ({"dt_floor": 0.0}, "dt_floor must be positive, got 0.0"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Mamba2Config(**options)


def build(n_heads: int, **options) -> HookedSSM:
    sizes = {"d_model": 12, "n_layers": 1, "d_vocab": 5, "n_heads": n_heads, "d_head": 1}
    return HookedSSM(HookedSSMConfig(**sizes, mixers=Mamba2Config(**options)))


def test_channels_that_are_not_shared_out_evenly_are_refused():
    with pytest.raises(ValueError, match="must be a multiple of n_heads, got 24 and 5"):
        build(5)
    with pytest.raises(ValueError, match="n_heads must be a multiple of n_groups, got 4 and 3"):
        build(4, n_groups=3)
    with pytest.raises(ValueError, match="n_heads must be a multiple of n_groups, got 2 and 4"):
        build(2, n_groups=4)


@pytest.mark.parametrize(
    ("sizes", "heads", "width"),
    [
        ({"d_model": 16}, 1, 32),  # less than one head of 64
        ({"d_model": 32}, 1, 64),
        ({"d_model": 128}, 4, 64),
        ({"d_model": 24, "head_dim": 16}, 3, 16),
        ({"d_model": 16, "n_heads": 4}, 4, 8),
        ({"d_model": 16, "n_heads": 4, "head_dim": 5}, 4, 8),
        ({"d_model": 16, "n_heads": 32}, 32, 1),
    ],
    ids=str,
)
def test_the_presets_heads(sizes, heads, width):
    model = HookedSSM(zoo.mamba2(d_vocab=5, **sizes))
    assert (model.cfg.n_heads, model.cfg.d_head) == (heads, width)
    assert model.blocks[0].mixer.W_O.shape == (heads, width, sizes["d_model"])


@pytest.mark.parametrize(("head_dim", "got"), [(10, "32 and 10"), (0, "32 and 0")])
def test_a_preset_whose_channels_are_no_multiple_of_its_heads_is_refused(head_dim, got):
    with pytest.raises(ValueError, match=f"must be a multiple of head_dim, got {got}"):
        zoo.mamba2(d_model=16, d_vocab=5, head_dim=head_dim)


def test_the_pattern_cannot_be_edited_when_continuing_from_a_state():
    model, tokens = CASES[0].model(), random_tokens()
    _, state = model.step(tokens[:, :4])
    with model.hooks(fwd_hooks=[("blocks.0.mixer.hook_pattern", lambda tensor, hook: tensor)]):
        with pytest.raises(ValueError, match="fires on whole documents, not when continuing from a state"):
            model.step(tokens[:, 4:], state)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_matrix_without_dt_is_the_matrix_over_dt(case):
    model = case.model(n_layers=1)
    _, cache = model.run_with_cache(random_tokens())
    mixer, activations = model.blocks[0].mixer, cache.of_mixer(0)
    whole = mixer.effective_attention(activations)
    assert close(whole, activations["hook_pattern"], 1e-12)
    without = mixer.effective_attention(activations, include_dt_scaling=False)
    dt = activations["hook_ssm_dt"].transpose(1, 2).unsqueeze(2)
    assert close(without * dt, whole, 1e-12)
    last = torch.einsum("bhn,bjhn->bhj", activations["hook_q"][:, -1], activations["hook_k"])
    assert close(without[:, :, -1, -1], last[:, :, -1], 1e-12)  # nothing decays on the diagonal
