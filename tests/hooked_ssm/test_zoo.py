"""The presets are the paper's models."""

import inspect

import pytest
import torch

from hooked_ssm import HookedSSM, HookedSSMConfig, zoo
from hooked_ssm.layers import LayerNorm, RMSNorm
from hooked_ssm.mixers import (
    AttentionConfig,
    BaseConvConfig,
    BasedConfig,
    DeltaNetConfig,
    GatedDeltaNetConfig,
    GLAConfig,
    HyenaConfig,
    MambaConfig,
)

# Weights of the paper's two-layer models, by vocabulary (associative recall's, and its tree-shaped kin's) and
# d_model: counted from the parameter shapes of the original code. Attention has 1024 learned positions.
COUNTS = {
    ("attention", 8196, 16): 154_016,
    ("attention", 8196, 64): 689_792,
    ("attention", 8196, 256): 3_938_816,
    ("attention", 26, 16): 23_296,
    ("attention", 26, 64): 166_912,
    ("attention", 26, 256): 1_847_296,
    ("h3", 8196, 16): 252_480,
    ("h3", 8196, 64): 1_083_648,
    ("h3", 8196, 256): 5_514_240,
    ("h3", 26, 16): 121_760,
    ("h3", 26, 64): 560_768,
    ("h3", 26, 256): 3_422_720,
    ("base_conv", 8196, 16): 139_568,
    ("base_conv", 8196, 64): 604_160,
    ("base_conv", 8196, 256): 3_291_968,
    ("base_conv", 26, 16): 8_848,
    ("base_conv", 26, 64): 81_280,
    ("base_conv", 26, 256): 1_200_448,
    ("based", 8196, 16): 136_656,
    ("based", 8196, 64): 604_992,
    ("based", 8196, 256): 3_353_856,
    ("based", 26, 16): 5_936,
    ("based", 26, 64): 82_112,
    ("based", 26, 256): 1_262_336,
    # Without the skips, n_layers * d_model, which the original code holds and does not use.
    ("hyena", 8196, 16): 163_584,
    ("hyena", 8196, 64): 657_792,
    ("hyena", 8196, 256): 3_740_544,
    ("hyena", 26, 16): 32_864,
    ("hyena", 26, 64): 134_912,
    ("hyena", 26, 256): 1_649_024,
    ("mamba", 8196, 16): 137_920,
    ("mamba", 8196, 64): 590_080,
    ("mamba", 8196, 256): 2_974_720,
    ("mamba", 26, 16): 7_200,
    ("mamba", 26, 64): 67_200,
    ("mamba", 26, 256): 883_200,
    # From flash-linear-attention's layer, in the paper's blocks: what the paper had is not known.
    ("delta_net", 8196, 16): 138_064,
    ("delta_net", 8196, 64): 625_984,
    ("delta_net", 26, 256): 1_592_064,
    ("mamba2", 8196, 64): 611_084,
    ("mamba2", 8196, 256): 3_029_552,
}


@pytest.mark.parametrize(("kind", "d_vocab", "d_model"), COUNTS)
def test_models_have_as_many_weights_as_the_papers(kind, d_vocab, d_model):
    model = HookedSSM(zoo.paper.PRESETS[kind](d_model=d_model, d_vocab=d_vocab, device="meta"))
    assert sum(p.numel() for p in model.parameters()) == COUNTS[kind, d_vocab, d_model]


def test_attention_is_the_papers_transformer():
    model = HookedSSM(zoo.attention(d_model=16, d_vocab=9))
    cfg = model.cfg
    assert cfg.mixers == [AttentionConfig(bias=False)] * 2
    assert (cfg.n_heads, cfg.d_mlp, cfg.n_ctx, cfg.act_fn, cfg.eps) == (1, 64, 1024, "gelu", 1e-5)
    assert cfg.positional_embedding_type == "standard" and cfg.tie_embeddings
    assert type(model.ln_final) is type(model.blocks[0].ln1) is type(model.blocks[0].ln2) is LayerNorm


def test_mamba_is_the_papers():
    model = HookedSSM(zoo.mamba(d_model=16, d_vocab=9))
    assert model.cfg.mixers == [MambaConfig(d_state=16, d_conv=4, expand=2)] * 2
    assert model.cfg.positional_embedding_type == "none" and model.cfg.tie_embeddings
    assert type(model.ln_final) is LayerNorm and type(model.blocks[0].ln1) is RMSNorm
    assert model.blocks[0].mlp is None and model.blocks[0].mixer.dt_rank == 1
    assert HookedSSM(zoo.mamba(d_model=40, d_vocab=9)).blocks[0].mixer.dt_rank == 3


def test_base_convs_layers_are_short_and_long_in_turn():
    def widths(cfg: HookedSSMConfig) -> list[int | None]:
        return [mixer.d_conv for mixer in cfg.mixers]

    for presets in (zoo, zoo.paper):
        assert widths(presets.base_conv(d_model=16, d_vocab=9, n_layers=3)) == [3, None, 3]
        assert widths(presets.base_conv(d_model=16, d_vocab=9, d_conv=5)) == [5, 5]
        assert widths(presets.base_conv(d_model=16, d_vocab=9, n_layers=3, d_conv=[2, 1])) == [2, 1, 2]
    assert widths(zoo.paper.base_conv_long_only(d_model=16, d_vocab=9)) == [None, None]
    with pytest.raises(ValueError, match="d_conv must have at least one width"):
        zoo.base_conv(d_model=16, d_vocab=9, d_conv=[])


def test_hyena_is_the_papers():
    assert zoo.hyena(d_model=16, d_vocab=9).mixers == [HyenaConfig()] * 2
    cfg = zoo.paper.hyena(d_model=16, d_vocab=9)
    assert cfg.mixers == [HyenaConfig(skip=False, filter_std=0.02)] * 2
    assert cfg.positional_embedding_type == "none" and (cfg.d_mlp, cfg.n_ctx) == (64, 1024)


def test_delta_nets_are_flash_linear_attentions_and_zoologys():
    assert zoo.delta_net(d_model=16, d_vocab=9).mixers == [DeltaNetConfig()] * 2
    assert zoo.gated_delta_net(d_model=16, d_vocab=9).mixers == [GatedDeltaNetConfig()] * 2
    assert zoo.paper.delta_net(d_model=16, d_vocab=9).mixers == [DeltaNetConfig()] * 2
    for preset, heads in ((zoo.delta_net, 4), (zoo.gated_delta_net, 4), (zoo.paper.delta_net, 2)):
        for d_model in (16, 256):
            cfg = preset(d_model=d_model, d_vocab=9)
            assert (cfg.n_heads, cfg.d_mlp, cfg.positional_embedding_type) == (heads, 4 * d_model, "none")
    options = {"d_conv": 0, "allow_neg_eigval": True, "use_gate": False, "expand_k": 0.5, "expand_v": 1.5}
    assert zoo.gated_delta_net(d_model=16, d_vocab=9, **options).mixers[0] == GatedDeltaNetConfig(**options)
    options |= {"use_gate": True}
    assert zoo.delta_net(d_model=16, d_vocab=9, **options).mixers[0] == DeltaNetConfig(**options)
    ungated = zoo.delta_net(d_model=16, d_vocab=9, use_beta=False).mixers[0]
    assert ungated == DeltaNetConfig(use_beta=False)


def test_based_takes_turns_with_base_conv():
    conv, linear = BaseConvConfig(d_conv=3), BasedConfig(feature_dim=16)
    assert zoo.based(d_model=16, d_vocab=9, n_layers=3).mixers == [conv, linear, conv]
    assert zoo.based(d_model=16, d_vocab=9, d_conv=2).mixers == [BaseConvConfig(d_conv=2), linear]


def test_based_is_the_papers():
    in_paper = {"train_positions": True, "filter_std": 0.02}
    linear = BasedConfig(feature_dim=8)
    cfg = zoo.paper.based(d_model=16, d_vocab=9)
    assert cfg.mixers == [BaseConvConfig(d_conv=3, **in_paper), linear]
    assert cfg.positional_embedding_type == "none" and (cfg.d_mlp, cfg.n_heads, cfg.n_ctx) == (64, 1, 1024)
    long_only = zoo.paper.based_long_only(d_model=16, d_vocab=9, n_layers=3)
    conv = BaseConvConfig(d_conv=None, **in_paper)
    assert long_only.mixers == [conv, linear, conv]


def test_gla_is_its_authors():
    cfg = zoo.gla(d_model=16, d_vocab=9)
    mixer = GLAConfig(expand_k=0.5, expand_v=1.0, gate_logit_normalizer=16.0, gate_low_rank=16)
    assert cfg.mixers == [mixer] * 2 and (cfg.n_heads, cfg.d_mlp) == (4, 64)
    assert cfg.normalization_type == "RMS" and cfg.linear_std == 0.02


def test_a_hybrid_takes_turns_mamba_first():
    names = [mixer.name for mixer in zoo.hybrid(d_model=16, d_vocab=9, n_layers=3).mixers]
    assert names == ["mamba", "attention", "mamba"]


@pytest.mark.parametrize("kind", zoo.PRESETS)
def test_every_option_of_a_preset_reaches_its_model(kind):
    cfg = zoo.PRESETS[kind](
        d_model=16,
        d_vocab=9,
        n_layers=3,
        n_heads=4,
        d_mlp=5,
        n_ctx=7,
        tie_embeddings=False,
        seed=3,
        dtype=torch.float64,
    )
    assert (cfg.d_model, cfg.d_vocab, cfg.n_layers, cfg.n_heads, cfg.d_mlp, cfg.n_ctx) == (16, 9, 3, 4, 5, 7)
    assert not cfg.tie_embeddings and cfg.seed == 3
    model = HookedSSM(cfg)
    assert len(model.blocks) == 3 and model.blocks[0].mlp is not None
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 9)


@pytest.mark.parametrize("kind", zoo.PRESETS)
def test_an_option_that_no_preset_has_is_refused(kind):
    with pytest.raises(ValueError, match=f"'n_layer' is no option of zoo.{kind}; did you mean 'n_layers'"):
        zoo.PRESETS[kind](d_model=16, d_vocab=9, n_layer=3)


@pytest.mark.parametrize("presets", [zoo.published, zoo.paper], ids=["published", "paper"])
def test_presets_are_all_the_functions_of_their_module(presets):
    functions = {
        name
        for name, function in inspect.getmembers(presets, inspect.isfunction)
        if inspect.signature(function).return_annotation is HookedSSMConfig and name != "config"
    }
    assert set(presets.PRESETS) == functions


def test_the_paper_trained_published_architectures():
    names = {name.removesuffix("_long_only") for name in zoo.paper.PRESETS}
    assert names <= set(zoo.PRESETS) <= set(zoo.__all__)
