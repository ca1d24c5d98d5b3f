"""The presets are the paper's models."""

import inspect

import pytest
import torch

from hooked_ssm import HookedSSM, HookedSSMConfig, zoo
from hooked_ssm.layers import LayerNorm, RMSNorm
from hooked_ssm.mixers import AttentionConfig, MambaConfig

# Weights of the paper's two-layer models, by vocabulary (associative recall's, and its tree-shaped kin's) and
# d_model: counted from the parameter shapes of the original code. Attention has 1024 learned positions.
COUNTS = {
    ("attention", 8196, 16): 154_016,
    ("attention", 8196, 64): 689_792,
    ("attention", 8196, 256): 3_938_816,
    ("attention", 26, 16): 23_296,
    ("attention", 26, 64): 166_912,
    ("attention", 26, 256): 1_847_296,
    ("mamba", 8196, 16): 137_920,
    ("mamba", 8196, 64): 590_080,
    ("mamba", 8196, 256): 2_974_720,
    ("mamba", 26, 16): 7_200,
    ("mamba", 26, 64): 67_200,
    ("mamba", 26, 256): 883_200,
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
    assert set(zoo.paper.PRESETS) <= set(zoo.PRESETS) <= set(zoo.__all__)
