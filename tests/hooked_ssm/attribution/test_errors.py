"""Each mistake has one clear error, whichever function it is made with."""

import pytest
import torch

from hooked_ssm.attribution import edge_attribution, gradient_attribution, integrated_gradients

from ..models import scattered
from ..patching.case import case_of

FUNCTIONS = [gradient_attribution, integrated_gradients, edge_attribution]


@pytest.fixture(params=FUNCTIONS, ids=lambda function: function.__name__)
def attribute(request):
    case = case_of("hybrid")

    def run(hooks=("hook_embed", "resid_mid"), metric=case.per_document, clean=None, model=None, **options):
        return request.param(
            model or case.model,
            case.clean if clean is None else clean,
            case.corrupted,
            metric,
            hooks,
            **options,
        )

    return run


def test_a_metric_gives_a_number_or_one_a_document(attribute):
    with pytest.raises(ValueError, match=r"a scalar, or one value a document, \[3\], got shape \[3, 6\]"):
        attribute(metric=lambda logits: logits.mean(-1))
    with pytest.raises(ValueError, match=r"got shape \[2\]"):
        attribute(metric=lambda logits: logits.mean((-1, -2))[:2])
    with pytest.raises(TypeError, match="must return a tensor, got float"):
        attribute(metric=lambda logits: float(logits.detach().mean()))
    with pytest.raises(TypeError):
        attribute(metric=3.0)


@pytest.mark.parametrize(
    "metric",
    [
        lambda logits: logits.detach().mean(),
        lambda logits: logits.argmax(-1).double().mean(),
        lambda logits: torch.no_grad()(torch.mean)(logits),
        lambda logits: logits.argmax(-1).sum(),
    ],
    ids=["detached", "argmax", "no_grad", "integer"],
)
def test_a_metric_can_be_differentiated(attribute, metric):
    with pytest.raises(ValueError, match="the metric cannot be differentiated"):
        attribute(metric=metric)


def test_hooks_must_exist_and_fire(attribute):
    with pytest.raises(KeyError, match="no hook named 'blocks.0.mixer.hook_gat'; did you mean"):
        attribute(["blocks.0.mixer.hook_gat"])
    with pytest.raises(KeyError, match="no hook named 'blocks.0.hook_resid_pr'; did you mean"):
        attribute(["resid_pr"])
    with pytest.raises(ValueError, match="would not fire: it fires after model.set_use_attn_result"):
        attribute(["blocks.0.mixer.hook_result"])
    with pytest.raises(ValueError, match=r"at least one hook is wanted|a graph needs one node"):
        attribute([])


def test_a_filter_must_match_something():
    case = case_of("hybrid")
    with pytest.raises(ValueError, match="the filter matches no hook"):
        gradient_attribution(case.model, case.clean, case.corrupted, case.metric, lambda name: False)


def test_hooks_must_lie_between_the_inputs_and_the_metric(attribute):
    """The metric reads the first position of a causal model whose end is cut off from the rest."""
    model = scattered("hybrid")
    model.ln_final.register_forward_hook(lambda module, args, out: torch.zeros_like(out) + model.ln_final.w)
    with pytest.raises(ValueError, match="does not lie between the inputs and the metric"):
        attribute(model=model)


def test_documents_must_be_as_many_and_as_long(attribute):
    case = case_of("hybrid")
    with pytest.raises(ValueError, match=r"must have one shape \[doc, pos\], got \[3, 5\] and \[3, 6\]"):
        attribute(clean=case.clean[:, :-1])
    with pytest.raises(ValueError, match=r"got \[2, 6\] and \[3, 6\]"):
        attribute(clean=case.clean[:2])


def test_models_must_not_be_in_training_mode(attribute):
    model = scattered("hybrid")
    model.blocks[1].train()
    with pytest.raises(ValueError, match="blocks.1 is in training mode: call model.eval"):
        attribute(model=model)


def test_there_are_no_gradients_in_inference_mode(attribute):
    with torch.inference_mode(), pytest.raises(ValueError, match="none of in torch.inference_mode"):
        attribute()
    with torch.inference_mode():
        model = scattered("hybrid")
    with pytest.raises(ValueError, match="weights made in it"):
        attribute(model=model)


def test_logit_positions_must_be_in_range(attribute):
    with pytest.raises(ValueError, match=r"logit_positions must lie in 0..5, got 6"):
        attribute(logit_positions=6)


def test_batches_have_a_document(attribute):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        attribute(batch_size=0)


def test_axes_must_be_the_hooks_own():
    case = case_of("hybrid")
    documents = case.model, case.clean, case.corrupted, case.metric
    with pytest.raises(ValueError, match="none of them 'tap'"):
        gradient_attribution(*documents, "resid_pre", ("tap",))
    with pytest.raises(ValueError, match="has 8 entries, got 9 groups"):
        gradient_attribution(*documents, "resid_pre", ("channel",), groups={"channel": 9})
    with pytest.raises(ValueError, match="they cannot be grouped"):
        gradient_attribution(*documents, "ssm_state", ("pos",), groups={"pos": 2})
    with pytest.raises(ValueError, match="at must be 'corrupted' or 'clean'"):
        gradient_attribution(*documents, "resid_pre", at="corrupt")
