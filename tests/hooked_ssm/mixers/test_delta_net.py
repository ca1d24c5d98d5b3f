"""What DeltaNet and Gated DeltaNet refuse."""

import re

import pytest
import torch

from hooked_ssm import HookedSSM, HookedSSMConfig
from hooked_ssm.mixers import DeltaNetConfig, GatedDeltaNetConfig

from .naive_delta_net import CASES

BOTH = pytest.mark.parametrize("config", [DeltaNetConfig, GatedDeltaNetConfig])


def refuses(message: str):
    return pytest.raises(ValueError, match=re.escape(message))


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expand_k": 0.0}, "expand_k must be positive, got 0.0."),
        ({"expand_v": -1.0}, "expand_v must be positive, got -1.0."),
        ({"d_conv": -1}, "d_conv must be at least 0, got -1."),
        (
            {"use_beta": False, "allow_neg_eigval": True},
            "allow_neg_eigval=True is about beta, and there is none with use_beta=False.",
        ),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused(config, options, message):
    with refuses(message):
        config(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"A_min": 0.0}, "A_min must be positive and at most A_max, got 0.0 and 16.0."),
        ({"A_min": 2.0, "A_max": 1.0}, "A_min must be positive and at most A_max, got 2.0 and 1.0."),
        ({"dt_min": -0.1}, "dt_min must be positive and at most dt_max, got -0.1 and 0.1."),
        ({"dt_min": 0.2}, "dt_min must be positive and at most dt_max, got 0.2 and 0.1."),
        ({"dt_floor": 0.0}, "dt_floor must be positive, got 0.0."),
    ],
    ids=str,
)
def test_a_wrong_range_of_initial_decays_is_refused(options, message):
    with refuses(message):
        GatedDeltaNetConfig(**options)


@BOTH
@pytest.mark.parametrize("option", ["expand_k", "expand_v"])
@pytest.mark.parametrize("factor", [1.5, 0.25])
def test_a_head_of_broken_width_is_refused(config, option, factor):
    cfg = HookedSSMConfig(d_model=6, n_heads=2, n_layers=1, d_vocab=5, mixers=config(**{option: factor}))
    with refuses(f"{option} * d_head must be a whole number, at least 1, got {factor} * 3."):
        HookedSSM(cfg)


@BOTH
@pytest.mark.parametrize("heads", [0, 4])
def test_heads_that_do_not_divide_the_model_are_refused(config, heads):
    message = "n_heads must be" if heads == 0 else "got d_model=6, n_heads=4"
    with refuses(message):
        HookedSSMConfig(d_model=6, n_heads=heads, n_layers=1, d_vocab=5, mixers=config())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_pattern_of_a_piece_is_refused(case):
    mixer = case.model().blocks[0].mixer
    u = torch.randn(2, 3, 8, dtype=torch.float64)
    _, state = mixer.extend(u)
    mixer.hook_pattern.add_hook(lambda pattern, hook: None)
    mixer.extend(u)
    with refuses(f"hook_pattern of a {type(mixer).__name__} fires on whole documents"):
        mixer.extend(u, state)
