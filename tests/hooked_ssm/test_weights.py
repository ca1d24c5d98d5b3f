"""A model's weights: what is read off them, how they are drawn, and that they are the model's own."""

import copy

import pytest
import torch

from hooked_ssm import HookedSSM

from .models import D_VOCAB, config, scattered


@pytest.fixture(params=["attention", "mamba", "hybrid"])
def model(request: pytest.FixtureRequest) -> HookedSSM:
    return scattered(request.param)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(D_VOCAB, (3, 7), generator=torch.Generator().manual_seed(1))


def test_accumulated_bias_is_what_a_layer_adds_to_a_stream_of_zeros():
    """With zero weights everywhere but in the biases, the stream is the embedding and the biases so far."""
    model = scattered("attention", tie_embeddings=False)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "b_O" not in name and "b_out" not in name:
                p.zero_()
    _, cache = model.run_with_cache(torch.zeros(1, 2, dtype=torch.long))
    for layer in range(2):
        for name, mlp_input in (("resid_pre", False), ("resid_mid", True)):
            wanted = cache[name, layer][0, 0]
            torch.testing.assert_close(
                model.accumulated_bias(layer, mlp_input=mlp_input), wanted, rtol=1e-14, atol=0
            )
    torch.testing.assert_close(
        model.accumulated_bias(2), cache["resid_post", 1][0, 0], rtol=1e-14, atol=1e-15
    )
    mixers_only = model.blocks[0].mixer.b_O + model.blocks[1].mixer.b_O
    assert torch.equal(model.accumulated_bias(2, include_mlp_biases=False), mixers_only)


def test_mambas_write_no_bias():
    model = scattered("mamba")
    assert (model.accumulated_bias(2) == 0).all() and model.accumulated_bias(2).shape == (8,)


@pytest.mark.parametrize("final_norm", ["LN", "RMS"])
def test_residual_directions_give_logits(tokens, final_norm):
    """x . direction / scale = the logit, less the norm's bias."""
    model = scattered("hybrid", final_norm=final_norm)
    logits, cache = model.run_with_cache(tokens)
    resid, scale = cache["resid_post", 1], cache["ln_final.hook_scale"]
    directions = model.tokens_to_residual_directions(torch.arange(D_VOCAB))
    bias = model.ln_final.b @ model.W_U if final_norm == "LN" else 0
    torch.testing.assert_close(resid @ directions.T / scale + bias, logits, rtol=1e-12, atol=1e-12)
    assert torch.equal(model.tokens_to_residual_directions(3), directions[3])
    assert torch.equal(model.tokens_to_residual_directions(tokens), directions[tokens])


def test_a_seed_gives_the_same_weights_and_leaves_random_numbers_alone():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second = HookedSSM(config("hybrid", seed=5)), HookedSSM(config("hybrid", seed=5))
    assert torch.equal(torch.get_rng_state(), state)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not torch.equal(HookedSSM(config("hybrid", seed=6)).W_E, first.W_E)
    first.reset_parameters()
    second.reset_parameters()
    assert torch.equal(torch.get_rng_state(), state)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


def test_without_a_seed_weights_come_from_the_global_random_state():
    torch.manual_seed(7)
    first, other = HookedSSM(config("hybrid", seed=None)), HookedSSM(config("hybrid", seed=None))
    torch.manual_seed(7)
    again = HookedSSM(config("hybrid", seed=None))
    assert torch.equal(first.W_E, again.W_E) and not torch.equal(first.W_E, other.W_E)
    before = first.W_E.clone()
    first.reset_parameters()
    assert not torch.equal(first.W_E, before)


def test_the_config_follows_the_weights():
    model = HookedSSM(config("mamba"))
    assert model.cfg.dtype == model.W_E.dtype == torch.float32 and model.cfg.device == "cpu"
    model.double()
    assert model.cfg.dtype == torch.float64 == model.blocks[0].mixer.cfg.dtype
    model.to("meta")
    assert model.cfg.device == "meta"


def test_models_of_one_config_do_not_share_its_flags():
    cfg = config("attention")
    first, second = HookedSSM(cfg), HookedSSM(cfg)
    first.set_use_attn_result(True)
    first.double()
    assert not second.cfg.use_attn_result and not cfg.use_attn_result
    assert second.cfg.dtype == cfg.dtype == torch.float32


def test_the_model_starts_in_evaluation_mode_and_does_not_depend_on_it(model, tokens):
    assert not model.training
    logits = model(tokens)
    assert torch.equal(model.train()(tokens), logits)


def test_a_copy_has_weights_hooks_and_flags_of_its_own(model, tokens):
    logits = model(tokens)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(tokens), logits)
    name = "blocks.1.attn.hook_z"
    assert twin.hook_dict[name] is twin.blocks[1].mixer.hook_z is not model.hook_dict[name]
    with torch.no_grad():
        twin.W_E.zero_()
    twin.set_use_attn_result(True)
    assert torch.equal(model(tokens), logits) and not model.cfg.use_attn_result
    twin.add_hook(name, lambda z, hook: z * 0)
    assert torch.equal(model(tokens), logits) and not model.list_hooks()
    twin.reset_hooks()
    zeroed = model.run_with_hooks(tokens, fwd_hooks=[(name, lambda z, hook: z * 0)])
    assert not torch.equal(zeroed, logits)
