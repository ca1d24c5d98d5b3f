"""TransformerLens's head detector, on texts: which heads attend as a pattern says?

Its score is the share of a head's pattern that lies on the wanted entries. Of a Mamba, whose pattern is not
normalised, it is the share of the pattern's sum.
"""

import logging

import pytest
import torch
from transformer_lens.head_detector import detect_head

TEXT = "a b c a b"


def patterns_of(model, text):
    with torch.no_grad():
        _, cache = model.run_with_cache(text)
    return torch.stack([cache["pattern", layer][0] for layer in range(model.cfg.n_layers)])


@pytest.fixture
def model(pattern_case, tokenizer):
    pattern_case.model.tokenizer = tokenizer
    yield pattern_case.model
    pattern_case.model.tokenizer = None


def test_previous_token_scores_are_shares_of_the_pattern(model):
    scores = detect_head(model, TEXT, "previous_token_head")
    patterns = patterns_of(model, TEXT)
    expected = patterns.diagonal(-1, 2, 3).sum(-1) / patterns.sum((-1, -2))
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pattern", ["duplicate_token_head", "induction_head"])
def test_repeated_tokens_are_looked_for_where_they_are(model, pattern):
    """BOS a b c a b: the second a and b, at 4 and 5, have their firsts at 1 and 2."""
    scores = detect_head(model, TEXT, pattern)
    patterns = patterns_of(model, TEXT)
    shift = pattern == "induction_head"
    on_target = patterns[..., 4, 1 + shift] + patterns[..., 5, 2 + shift]
    torch.testing.assert_close(scores, on_target / patterns.sum((-1, -2)), rtol=1e-6, atol=1e-6)


def test_a_pattern_set_by_a_hook_is_found(model):
    """A head whose pattern is made to be the previous token's scores 1 there, and no other does."""

    def attend_to_previous(pattern, hook):
        pattern[:, 1] = torch.eye(pattern.shape[-1], dtype=pattern.dtype).roll(-1, 1).tril()

    with torch.no_grad(), model.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", attend_to_previous)]):
        scores = detect_head(model, TEXT, "previous_token_head")
    assert float(scores[1, 1]) == pytest.approx(1.0)
    assert (scores[0] != 1.0).all()


def test_some_heads_of_several_texts_and_other_measures(model, caplog):
    some = detect_head(model, TEXT, "previous_token_head", heads=[(1, 0)])
    everything = detect_head(model, TEXT, "previous_token_head")
    assert some[1, 0] == everything[1, 0] and (some[0] == -1).all()
    texts = [TEXT, "b b c"]
    mean = detect_head(model, texts, "previous_token_head")
    alone = [detect_head(model, text, "previous_token_head") for text in texts]
    torch.testing.assert_close(mean, sum(alone) / 2)
    wanted = torch.eye(6).tril()
    by_difference = detect_head(model, TEXT, wanted, error_measure="abs")
    difference = (patterns_of(model, TEXT) - wanted).abs().mean((-1, -2)) * 6
    torch.testing.assert_close(by_difference, 1 - difference, rtol=0, atol=1e-3)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
