"""Direct logit attribution with a learned final norm: TransformerLens's sums are the logits themselves.

Elsewhere TransformerLens wants the norm's weight folded into the unembedding and is silently wrong without;
here the weight is in `tokens_to_residual_directions`. The norm's bias adds b W_U whatever the residual stream
is: like b_U in TransformerLens it belongs to no component, and the sums are the logits less that.
"""

import pytest
import torch
from transformer_lens.tools.analysis import direct_logit_attribution

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def target(case, logits, tokens, others=None, positions=slice(None)):
    """The logits at given tokens [batch], or their differences to others, less what the norm's bias adds."""
    model = case.model
    with torch.no_grad():
        logits = logits - model.ln_final.b * torch.ones(model.cfg.d_model, dtype=logits.dtype) @ model.W_U
        documents = torch.arange(len(logits))
        values = logits[documents, :, tokens]
        if others is not None:
            values = values - logits[documents, :, others]
    return values[:, positions]


@pytest.fixture
def run(case):
    with torch.no_grad():
        logits, cache = case.model.run_with_cache(case.clean)
    assert (case.model.ln_final.w - 1).abs().max() > 0.2, "the final norm is not learned"
    return logits, cache


TOKENS, OTHERS = torch.tensor([2, 7]), torch.tensor([9, 1])


@pytest.mark.parametrize("others", [None, OTHERS], ids=["logit", "difference"])
def test_component_attributions_sum_to_the_logits(case, run, others):
    logits, cache = run
    attributions = cache.logit_attrs(cache.decompose_resid(), TOKENS, others)
    torch.testing.assert_close(attributions.sum(0), target(case, logits, TOKENS, others), **CLOSE)
    heads = cache.stack_head_results(incl_remainder=True)
    attributions = cache.logit_attrs(heads, TOKENS, others)
    torch.testing.assert_close(attributions.sum(0), target(case, logits, TOKENS, others), **CLOSE)


def test_attributions_take_tokens_of_every_kind(case, run):
    logits, cache = run
    stack = cache.decompose_resid(pos_slice=-1)
    for tokens, others in [
        (3, 5),
        (torch.tensor(3), torch.tensor(5)),
        (torch.tensor([3, 3]), torch.tensor([5, 5])),
    ]:
        sums = cache.logit_attrs(stack, tokens, others, pos_slice=-1).sum(0)
        both = torch.tensor([3, 3]), torch.tensor([5, 5])
        torch.testing.assert_close(sums, target(case, logits, *both, positions=-1), **CLOSE)
    everywhere = cache.logit_attrs(cache.decompose_resid(), case.corrupted).sum(0)
    expected = torch.stack(
        [target(case, logits, case.corrupted[:, pos])[:, pos] for pos in range(case.clean.shape[1])], dim=1
    )
    torch.testing.assert_close(everywhere, expected, **CLOSE)


def test_one_document_of_a_batch(case, run):
    logits, cache = run
    attributions = cache.logit_attrs(cache.decompose_resid(), 4, batch_slice=1)
    expected = target(case, logits, torch.tensor([4, 4]))[1]
    torch.testing.assert_close(attributions.sum(0), expected, **CLOSE)


@pytest.mark.parametrize("unit", ["component", "head"])
@pytest.mark.parametrize("pos", [-1, 2, None], ids=str)
def test_direct_logit_attribution_sums_to_the_logit_difference(case, run, unit, pos):
    with torch.no_grad():
        result = direct_logit_attribution(case.model, case.clean, TOKENS, OTHERS, unit=unit, pos=pos)
    positions = slice(None) if pos is None else pos
    torch.testing.assert_close(
        result.attribution.sum(0), target(case, run[0], TOKENS, OTHERS, positions), **CLOSE
    )
    assert len(result.labels) == len(result.attribution)
    assert len(result.top(3)) == 3


def test_direct_logit_attribution_by_layer_ends_at_the_logit_difference(case, run):
    """Each entry is the logit difference if the residual stream ended there, by the final scale."""
    logits, cache = run
    options = {"cache": cache, "answer_tokens": 3, "incorrect_tokens": 5, "unit": "layer"}
    if case.model.cfg.parallel_attn_mlp:
        with pytest.raises(KeyError, match="there is none in between"):
            direct_logit_attribution(case.model, **options)
        return
    result = direct_logit_attribution(case.model, **options)
    both = torch.tensor([3, 3]), torch.tensor([5, 5])
    torch.testing.assert_close(result.attribution[-1], target(case, logits, *both, positions=-1), **CLOSE)
    components = cache.logit_attrs(cache.decompose_resid(1, pos_slice=-1), 3, 5, pos_slice=-1).sum(0)
    torch.testing.assert_close(result.attribution[result.labels.index("1_pre")], components, **CLOSE)


def test_attribution_without_a_batch_axis(case, run):
    cache = case.cached(case.clean[:1], remove_batch_dim=True)
    result = direct_logit_attribution(case.model, cache=cache, answer_tokens=3, incorrect_tokens=5)
    both = torch.tensor([3, 3]), torch.tensor([5, 5])
    expected = target(case, run[0], *both, positions=-1)[0]
    torch.testing.assert_close(result.attribution.sum(0), expected, **CLOSE)


@pytest.mark.parametrize("final_norm", ["LN", "RMS"])
@pytest.mark.parametrize("block_norm", ["LN", "RMS"])
def test_attributions_are_right_for_every_pair_of_norms(rebuilt, block_norm, final_norm):
    case = rebuilt("hybrid with MLPs", normalization_type=block_norm, final_norm=final_norm)
    with torch.no_grad():
        logits, cache = case.model.run_with_cache(case.clean)
    for stack in (cache.decompose_resid(), cache.stack_head_results(incl_remainder=True)):
        sums = cache.logit_attrs(stack, TOKENS, OTHERS).sum(0)
        torch.testing.assert_close(sums, target(case, logits, TOKENS, OTHERS), **CLOSE)
