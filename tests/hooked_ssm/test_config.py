"""The configuration survives JSON, and says what is wrong with sizes and names that do not fit."""

import json
import re
from dataclasses import FrozenInstanceError

import pytest
import torch
from transformer_lens.config import TransformerLensConfig

from hooked_ssm import HookedSSM, HookedSSMConfig, MixerConfig, zoo
from hooked_ssm.mixers import MambaConfig

TYPE_CHECK = "whilst typechecking parameter"  # jaxtyping's words, where it has been switched on and is first
SIZES = {"d_model": 8, "n_layers": 2, "d_vocab": 5}


def config(**options) -> HookedSSMConfig:
    return HookedSSMConfig(**({**SIZES, "mixers": MambaConfig()} | options))


@pytest.mark.parametrize(
    "cfg",
    [
        zoo.attention(d_model=8, d_vocab=5, n_heads=2, bias=True, seed=3),
        zoo.mamba(d_model=8, d_vocab=5, d_state=3, d_conv=0, dtype=torch.float64),
        zoo.hybrid(d_model=8, d_vocab=5, n_layers=3, tie_embeddings=False, final_norm="RMS"),
        config(
            mixers=MambaConfig(dt_rank=2, dt_min=0.01, dt_max=0.2, dt_floor=0.02), eps=1e-6, linear_std=None
        ),
        config(use_attn_result=True, act_fn="relu", d_mlp=7, n_ctx=9, embed_std=0.5, model_name="mine"),
    ],
)
def test_a_config_survives_json(cfg):
    read = HookedSSMConfig.from_json(json.loads(json.dumps(cfg.to_json())))
    assert read == cfg
    assert read.to_json() == cfg.to_json()


def test_reading_json_leaves_it_as_it_was():
    values = config().to_json()
    HookedSSMConfig.from_json(values)
    assert values == config().to_json()


def test_the_device_is_not_part_of_the_json():
    assert "device" not in config(device="meta").to_json()


def test_repr_names_every_field():
    cfg = config(seed=3)
    assert repr(cfg).startswith("HookedSSMConfig(")
    assert "d_model=8" in repr(cfg) and "seed=3" in repr(cfg) and "'mamba'" in repr(cfg)


def test_one_mixer_stands_for_all_layers():
    assert config(n_layers=3).mixers == [MambaConfig()] * 3


def test_it_is_a_transformerlens_config():
    cfg = config()
    assert isinstance(cfg, TransformerLensConfig)
    assert (cfg.attn_only, cfg.d_mlp, cfg.d_head) == (True, 0, 8)
    cfg = config(d_mlp=12, n_heads=2, final_norm="RMS", normalization_type="RMS")
    assert (cfg.attn_only, cfg.d_mlp, cfg.d_head) == (False, 12, 4)
    assert cfg.uses_rms_norm and cfg.final_rms
    assert not config().uses_rms_norm and not config().final_rms


def test_a_mixer_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        MambaConfig().d_state = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"n_layers": -1}, "n_layers must be at least 1, got -1"),
        ({"d_vocab": 0}, "d_vocab must be at least 1, got 0"),
        ({"n_ctx": 0}, "n_ctx must be at least 1, got 0"),
        ({"n_heads": 0}, "n_heads must be at least 1, got 0"),
        (
            {"n_heads": 3},
            "a multiple of n_heads where d_head is not given, got d_model=8, n_heads=3",
        ),
        ({"d_mlp": -4}, "d_mlp must not be negative, got -4"),
        ({"mixers": [MambaConfig()]}, "one mixer a layer is wanted, got 1 for 2 layers"),
        ({"normalization_type": None}, "normalization_type must be one of .*'RMS'.*, got None"),
        (
            {"positional_embedding_type": "rotary"},
            "positional_embedding_type must be .*'standard'.*, got 'rotary'",
        ),
        ({"act_fn": "tanh"}, "act_fn must be one of .*'gelu'.*, got 'tanh'"),
    ],
)
def test_sizes_and_names_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize("mixers", ["mamba", ["mamba", "mamba"], [{"name": "mamba"}] * 2, None, MambaConfig])
def test_mixers_must_be_mixer_configs(mixers):
    ours = f"mixers must be a MixerConfig or a list of them, got {re.escape(repr(mixers))}"
    with pytest.raises(TypeError, match=f"{ours}|{TYPE_CHECK} 'mixers'"):
        config(mixers=mixers)


def test_the_final_norm_must_be_known():
    with pytest.raises(
        (ValueError, TypeError),
        match=f"final_norm must be one of .*'LN'.*, got 'BN'|{TYPE_CHECK} 'final_norm'",
    ):
        config(final_norm="BN")


@pytest.mark.parametrize("changes", [{"d_state": 0}, {"d_conv": -1}, {"expand": 0}, {"dt_rank": 0}])
def test_mamba_refuses_sizes_below_their_least(changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"Mamba's {name} must be at least .*, got {value}"):
        MambaConfig(**changes)


def test_mamba_refuses_heads_that_do_not_divide_its_channels():
    cfg = config(d_model=6, n_heads=3)
    assert HookedSSM(cfg).blocks[0].mixer.W_O.shape == (3, 4, 6)
    cfg.n_heads = 5
    with pytest.raises(ValueError, match="multiple of n_heads, got 12 and 5"):
        HookedSSM(cfg)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_modle": 8}, "'d_modle' is no field of HookedSSMConfig; did you mean 'd_model'"),
        ({"mixers": [{"name": "mambo"}] * 2}, "'mambo' is no known mixer; did you mean 'mamba'"),
        ({"mixers": [{"name": "zzz"}] * 2}, r"'zzz' is no known mixer; known: \[.*'attention', .*'mamba'"),
        ({"mixers": [{}] * 2}, "'None' is no known mixer"),
        (
            {"mixers": [{"name": "mamba", "d_stat": 4}] * 2},
            "'d_stat' is no option of mixer 'mamba'; did you mean 'd_state'",
        ),
        ({"mixers": []}, "one mixer a layer is wanted, got 0 for 2 layers"),
        ({"dtype": "float23"}, "dtype must be the name of a torch dtype, such as 'float32', got 'float23'"),
        ({"dtype": "nn"}, "dtype must be the name of a torch dtype, such as 'float32', got 'nn'"),
    ],
)
def test_json_with_unknown_names_is_refused_with_the_nearest(change, message):
    with pytest.raises(ValueError, match=message):
        HookedSSMConfig.from_json(config().to_json() | change)


def test_a_mixer_of_ones_own_is_known_by_its_name():
    from dataclasses import dataclass
    from typing import ClassVar

    @dataclass(frozen=True, kw_only=True)
    class Mine(MixerConfig):
        name: ClassVar[str] = "mine"
        size: int = 2

    try:
        cfg = config(mixers=Mine(size=3))
        assert HookedSSMConfig.from_json(cfg.to_json()).mixers == [Mine(size=3)] * 2
        with pytest.raises(NotImplementedError, match="Mine does not say how to build its mixer"):
            HookedSSM(cfg)
    finally:
        del MixerConfig.registry["mine"]
