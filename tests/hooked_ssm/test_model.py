"""Running a model: what it returns, what it refuses, and how its parts compose."""

import pytest
import torch
import torch.nn.functional as F

from hooked_ssm import HookedSSM

from .models import D_VOCAB, N_CTX, scattered

TYPE_CHECK = "Type-check error"  # jaxtyping's words, where it has been switched on and is first


@pytest.fixture(params=["attention", "mamba", "hybrid"])
def model(request: pytest.FixtureRequest) -> HookedSSM:
    return scattered(request.param)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(D_VOCAB, (3, 7), generator=torch.Generator().manual_seed(1))


# What comes out ---------------------------------------------------------------------------------------


def test_logits_are_the_final_norm_times_the_unembedding(model, tokens):
    logits, cache = model.run_with_cache(tokens)
    assert logits.shape == (3, 7, D_VOCAB) and logits.dtype == torch.float64
    resid = cache["blocks.1.hook_resid_post"]
    assert torch.equal(
        logits, F.layer_norm(resid, (8,), model.ln_final.w, model.ln_final.b, 1e-5) @ model.W_E.T
    )


def test_the_stream_is_the_sum_of_what_is_written_to_it(model, tokens):
    _, cache = model.run_with_cache(tokens)
    resid = cache["hook_embed"]
    assert torch.equal(resid, model.W_E[tokens])
    if model.cfg.positional_embedding_type == "standard":
        assert torch.equal(cache["hook_pos_embed"], model.pos_embed.W_pos[:7].expand(3, -1, -1))
        resid = resid + cache["hook_pos_embed"]
    for layer in range(2):
        assert torch.equal(cache["resid_pre", layer], resid)
        resid = resid + cache["mixer_out", layer]
        assert torch.equal(cache["resid_mid", layer], resid)
        resid = resid + cache["mlp_out", layer]
        assert torch.equal(cache["resid_post", layer], resid)
        assert (cache["mlp_out", layer] == 0).all() == (model.blocks[layer].mlp is None)


def test_the_loss_is_the_cross_entropy_of_the_next_token(model, tokens):
    logits, loss = model(tokens, return_type="both")
    assert torch.equal(logits, model(tokens))
    assert torch.equal(loss, model(tokens, return_type="loss"))
    log_probs = logits.log_softmax(-1)
    wanted = -sum(log_probs[i, t, tokens[i, t + 1]] for i in range(3) for t in range(6)) / 18
    torch.testing.assert_close(loss, wanted, rtol=1e-13, atol=0)
    assert loss.ndim == 0


def test_return_type_none_returns_nothing_but_runs_everything(model, tokens):
    seen = []
    hooks = [("ln_final.hook_normalized", lambda x, hook: seen.append(x))]
    assert model.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks) is None
    assert len(seen) == 1


def test_logits_at_some_positions_are_those_of_all(model, tokens):
    logits = model(tokens)
    positions = torch.tensor([6, 0, 3])
    # Other shapes for the product with the unembedding: equal but for rounding.
    at_positions = model(tokens, logit_positions=positions)
    torch.testing.assert_close(at_positions, logits[torch.arange(3), positions], rtol=1e-13, atol=1e-14)
    mask = torch.rand(3, 7, generator=torch.Generator().manual_seed(2)) < 0.4
    torch.testing.assert_close(model(tokens, logit_positions=mask), logits[mask], rtol=1e-13, atol=1e-14)
    nowhere = torch.zeros(3, 7, dtype=torch.bool)
    assert model(tokens, logit_positions=nowhere).shape == (0, D_VOCAB)


@pytest.mark.parametrize("layer", [0, 1, 2, -1, -2])
def test_stopping_and_starting_at_a_layer_compose(model, tokens, layer):
    resid = model(tokens, stop_at_layer=layer)
    _, cache = model.run_with_cache(tokens)
    index = layer % 2 if layer < 2 else 2
    wanted = cache["resid_post", 1] if index == 2 else cache["resid_pre", index]
    assert torch.equal(resid, wanted)
    assert torch.equal(model(resid, start_at_layer=layer), model(tokens))
    positions = torch.tensor([1, 2, 3])
    assert torch.equal(
        model(resid, start_at_layer=layer, logit_positions=positions),
        model(tokens, logit_positions=positions),
    )


def test_one_layer_can_be_run_alone(model, tokens):
    resid = model(tokens, stop_at_layer=1)
    assert torch.equal(model(resid, start_at_layer=1, stop_at_layer=2), model(tokens, stop_at_layer=2))
    assert torch.equal(model(resid, start_at_layer=1, stop_at_layer=1), resid)


def test_integer_tokens_of_any_width_are_the_same(model, tokens):
    assert torch.equal(model(tokens.int()), model(tokens))


# What is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(2, 3), TypeError, r"tokens must be integers \[batch, pos\], got torch.float32 \[2, 3\]"),
        (torch.zeros(2, 3, dtype=torch.bool), TypeError, "tokens must be integers .*, got torch.bool"),
        (torch.zeros(3, dtype=torch.long), ValueError, r"must be \[batch, pos\] .* got shape \[3\]"),
        (torch.zeros(1, 2, 3, dtype=torch.long), ValueError, r"got shape \[1, 2, 3\]"),
        (torch.zeros(2, 0, dtype=torch.long), ValueError, r"at least one of each, got shape \[2, 0\]"),
        (torch.zeros(0, 2, dtype=torch.long), ValueError, r"at least one of each, got shape \[0, 2\]"),
        (torch.tensor([[0, 11]]), ValueError, r"0..10 \(d_vocab=11\), got values from 0 to 11"),
        (torch.tensor([[3, -1]]), ValueError, r"0..10 \(d_vocab=11\), got values from -1 to 3"),
        ([[1, 2]], TypeError, "wanted tokens .* got list"),
        (3, TypeError, "wanted tokens .* got int"),
        ("a text", ValueError, "this model has no tokenizer: give it tokens, or set model.tokenizer"),
    ],
)
def test_what_are_not_tokens_is_refused(model, bad, error, message):
    for run in (model, model.generate, model.run_with_cache):
        with pytest.raises(error, match=message):
            run(bad)


@pytest.mark.parametrize("bad", [torch.zeros(2, 8), torch.zeros(2, 3, 9), [1.0], "text"])
def test_what_is_no_residual_stream_is_refused(model, bad):
    with pytest.raises(ValueError, match=r"a residual stream \[batch, pos, d_model=8\], got "):
        model(bad, start_at_layer=1)


@pytest.mark.parametrize("layer", [3, -3])
@pytest.mark.parametrize("which", ["start_at_layer", "stop_at_layer"])
def test_layers_that_do_not_exist_are_refused(model, tokens, which, layer):
    with pytest.raises(ValueError, match=f"{which} must be within 2 layers, got {layer}"):
        model(tokens, **{which: layer})


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.tensor([0, 1]), r"\[batch=3\] or a mask \[batch=3, pos=7\], got torch.int64 \[2\]"),
        (
            torch.zeros(3, 6, dtype=torch.bool),
            r"\[batch=3\] or a mask \[batch=3, pos=7\], got torch.bool \[3, 6\]",
        ),
        (torch.tensor([0, 7, 1]), "must lie in 0..6, got values from 0 to 7"),
        (torch.tensor([0, -1, 1]), "must lie in 0..6, got values from -1 to 1"),
    ],
)
def test_positions_that_are_not_there_are_refused(model, tokens, positions, message):
    with pytest.raises(ValueError, match=message):
        model(tokens, logit_positions=positions)


def test_a_loss_that_cannot_be_computed_is_refused(model, tokens):
    with pytest.raises(ValueError, match="2 tokens or more, got 1"):
        model(tokens[:, :1], return_type="loss")
    with pytest.raises(ValueError, match="leave out start_at_layer and logit_positions"):
        model(tokens, return_type="loss", logit_positions=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="leave out start_at_layer and logit_positions"):
        model(model(tokens, stop_at_layer=1), return_type="loss", start_at_layer=1)
    with pytest.raises((ValueError, TypeError), match=f"return_type must be .* got 'lgits'|{TYPE_CHECK}"):
        model(tokens, return_type="lgits")


def test_documents_longer_than_the_learned_positions_are_refused():
    model = scattered("attention")
    long = torch.zeros(1, N_CTX + 1, dtype=torch.long)
    with pytest.raises(ValueError, match=f"n_ctx={N_CTX} learned positions, got a document of {N_CTX + 1}"):
        model(long)
    _, state = model.step(long[:, :N_CTX])
    with pytest.raises(ValueError, match=f"n_ctx={N_CTX} learned positions, got a document of {N_CTX + 1}"):
        model.step(long[:, :1], state)
    assert scattered("mamba")(long).shape == (1, N_CTX + 1, D_VOCAB)


@pytest.mark.parametrize("flag", ["split_qkv_input", "attn_in"])
def test_steps_are_refused_while_inputs_are_split_by_head(model, tokens, flag):
    getattr(model, f"set_use_{flag}")(True)
    with pytest.raises(ValueError, match="not step by step: call set_use_split_qkv_input"):
        model.step(tokens)
    with pytest.raises(ValueError, match="not step by step: call set_use_split_qkv_input"):
        model.generate(tokens)


# Step by step -----------------------------------------------------------------------------------------


def test_steps_give_logits_where_they_are_wanted(model, tokens):
    logits = model(tokens)
    _, state = model.step(tokens[:, :4])
    got, state = model.step(tokens[:, 4:], state, logit_positions=torch.tensor([2, 0, 1]))
    torch.testing.assert_close(got, logits[torch.arange(3), torch.tensor([6, 4, 5])], rtol=1e-12, atol=1e-13)
    assert state.length == 7 and len(state.layers) == 2


def test_a_recurrent_models_state_does_not_grow(tokens):
    model = scattered("mamba")

    def size(length: int) -> int:
        _, state = model.step(tokens[:, :length])
        return sum(tensor.numel() for layer in state.layers for tensor in layer)

    assert size(1) == size(3) == size(7) > 0
