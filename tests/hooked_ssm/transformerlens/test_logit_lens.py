"""The logit lens: every residual stream as the model's own final norm and unembedding would read it."""

import pytest
import torch
from transformer_lens.tools.analysis import logit_lens, logit_readout

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def test_the_last_entry_is_the_models_logits(case):
    with torch.no_grad():
        logits = case.model(case.clean)
    lens = logit_lens(case.model, case.clean, positions=None)
    assert lens.labels[-1] == "final_post"
    torch.testing.assert_close(lens.values[-1], logits, **CLOSE)
    last = logit_lens(case.model, case.clean)
    torch.testing.assert_close(last.values[-1], logits[:, -1], **CLOSE)


def test_every_entry_is_the_model_without_its_later_layers(case):
    """Starting after the last layer runs the final norm and the unembedding alone."""
    cache, in_between = case.clean_cache, not case.model.cfg.parallel_attn_mlp
    lens = cache.logit_lens(positions=None, incl_mid=in_between)
    n_layers = case.model.cfg.n_layers
    with torch.no_grad():
        for layer in range(n_layers):
            for place in ("pre", "mid") if in_between else ("pre",):
                expected = case.model(cache[f"resid_{place}", layer], start_at_layer=n_layers)
                torch.testing.assert_close(
                    lens.values[lens.labels.index(f"{layer}_{place}")], expected, **CLOSE
                )


def test_ranks_probabilities_and_top_tokens(case):
    with torch.no_grad():
        logits = case.model(case.clean)[:, -1]
    target = int(logits[0].argsort(descending=True)[3])
    ranks = logit_lens(case.model, case.clean, targets=target).rank_trajectory(target)
    assert int(ranks[-1, 0]) == 3
    probabilities = logit_lens(case.model, case.clean, return_type="probs").values[-1]
    torch.testing.assert_close(probabilities.double(), logits.softmax(-1), rtol=1e-5, atol=1e-6)
    top = logit_lens(case.model, case.clean, top_k=2).readout
    assert torch.equal(top.top_ids[-1], logits.topk(2).indices)
    per_position = logit_lens(case.model, case.clean[:, :-1], positions=None, targets=case.clean[:, 1:])
    assert per_position.rank_trajectory().shape == (len(per_position.labels), *case.clean[:, 1:].shape)


def test_readout_of_any_direction(case):
    """A head's write, read as if it were the whole residual stream."""
    model = case.model
    vector = case.clean_cache.stack_head_results()[1]
    with torch.no_grad():
        expected = model(vector, start_at_layer=model.cfg.n_layers)
        torch.testing.assert_close(logit_readout(model, vector).values, expected, **CLOSE)
        plain = logit_readout(model, vector, apply_ln=False).values
        torch.testing.assert_close(plain, vector @ model.W_U, **CLOSE)


def test_the_lens_is_differentiable(case):
    tokens = case.clean
    resid = case.clean_cache["resid_pre", 1].requires_grad_()
    read = logit_readout(case.model, resid, targets=3, enable_grad=True).values.sum()
    (gradient,) = torch.autograd.grad(read, resid)
    direct = case.model(resid, start_at_layer=case.model.cfg.n_layers)[..., 3].sum()
    (expected,) = torch.autograd.grad(direct, resid)
    torch.testing.assert_close(gradient, expected, **CLOSE)
    assert resid.shape[:2] == tokens.shape


def test_a_model_in_training_mode_is_refused(case):
    case.model.train()
    try:
        with pytest.raises(ValueError, match="evaluation"):
            logit_lens(case.model, case.clean)
    finally:
        case.model.eval()
