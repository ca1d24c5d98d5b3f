"""TransformerLens's tools given text, which they turn into tokens by the model's own methods."""

import pytest
import torch
from transformer_lens.evals import sanity_check
from transformer_lens.tools.analysis import direct_logit_attribution, logit_lens
from transformer_lens.utilities import test_prompt as show_prompt

TEXT, TOKENS = "c a b", torch.tensor([[0, 5, 3, 4]])


@pytest.fixture
def model(case, tokenizer):
    case.model.tokenizer = tokenizer
    yield case.model
    case.model.tokenizer = None


def test_text_is_its_tokens_after_a_bos_token(model):
    assert torch.equal(model.to_tokens(TEXT), TOKENS)
    assert model.to_str_tokens(TEXT) == ["<bos>", "c", "a", "b"]
    assert model.to_single_token("a") == 3
    with pytest.raises(ValueError, match="'a b' is 2 tokens"):
        model.to_single_token("a b")


@torch.no_grad()
def test_running_on_text_is_running_on_its_tokens(model):
    assert torch.equal(model(TEXT), model(TOKENS))
    assert torch.equal(model(TEXT, return_type="loss"), model(TOKENS, return_type="loss"))
    logits, cache = model.run_with_cache(TEXT)
    assert torch.equal(logits, model(TOKENS)) and cache["embed"].shape[:2] == (1, 4)
    assert model.run_with_cache(TEXT, remove_batch_dim=True)[1]["embed"].shape[0] == 4
    batch = model([TEXT, "a b"])
    assert torch.equal(batch, model(torch.tensor([[0, 5, 3, 4], [0, 3, 4, 1]])))


@torch.no_grad()
def test_attribution_and_lens_take_text(model):
    by_text = direct_logit_attribution(model, TEXT, "a", "b").attribution
    by_token = direct_logit_attribution(model, TOKENS, 3, 4).attribution
    torch.testing.assert_close(by_text, by_token, rtol=0, atol=0)
    lens = logit_lens(model, TEXT, targets=["a", "d"])
    torch.testing.assert_close(lens.values[-1, 0], model(TOKENS)[0, -1, [3, 6]], rtol=1e-12, atol=1e-12)
    assert torch.equal(lens.rank_trajectory("d"), logit_lens(model, TOKENS, targets=6).rank_trajectory())
    directions = model.tokens_to_residual_directions
    torch.testing.assert_close(directions("a"), directions(torch.tensor(3)), rtol=0, atol=0)


def test_prompts_are_shown_with_the_answers_rank(model, capsys):
    show_prompt(TEXT, "d", model, prepend_space_to_answer=False)
    with torch.no_grad():
        logits = model(TOKENS)[0, -1]
    rank = int((logits > logits[6]).sum())
    assert f"[('d', {rank})]" in capsys.readouterr().out


@torch.no_grad()
def test_long_text_is_cut_at_n_ctx(model):
    assert model.to_tokens("a " * 100).shape == (1, model.cfg.n_ctx)
    assert bool(sanity_check(model).isfinite())  # TransformerLens's: the loss on a paragraph of 50 words


def test_text_without_a_tokenizer_is_refused(case):
    for tool in (case.model, case.model.run_with_cache, lambda text: logit_lens(case.model, text)):
        with pytest.raises(ValueError, match="this model has no tokenizer"):
            tool(TEXT)
