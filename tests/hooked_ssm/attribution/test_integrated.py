"""Integrated gradients: what they sum to, and what they are an integral of."""

import pytest
import torch

from hooked_ssm.attribution import gradient_attribution, integrated_gradients
from hooked_ssm.attribution.nodes import path_points
from hooked_ssm.patching import patch_sweep

from ..patching.case import CLOSE, case_of


def integrate(case, hooks, axes=("pos",), **options):
    return integrated_gradients(
        case.model,
        case.clean,
        case.corrupted,
        options.pop("metric", case.per_document),
        hooks,
        axes,
        **options,
    )


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("attention", ["resid_pre", "pattern", "q", "mlp_out"]),
        ("mamba", ["resid_pre", "conv_taps", "ssm_dt", "ssm_B", "ssm_write", "ssm_state", "gate"]),
        ("hybrid", ["mixer_out", "ssm_state", "pattern"]),
        ("gated_delta_net", ["beta", "ssm_write", "ssm_state", "z"]),
    ],
)
def test_scores_sum_to_what_patching_the_whole_activation_does(kind, names):
    case = case_of(kind)
    result = integrate(case, names, (), steps=80)
    for name in names:
        patched = patch_sweep(
            case.model, case.corrupted, case.cache, case.per_document, name, ("layer",), reduce="mean"
        )
        effect = patched - result.metric_corrupted.mean()
        torch.testing.assert_close(
            result.by_layer(name), effect, rtol=1e-4, atol=1e-3, equal_nan=True, msg=name
        )


def test_states_are_set_as_a_whole():
    case = case_of("mamba")
    names = [f"blocks.{layer}.mixer.hook_ssm_state" for layer in range(2)]
    result, by_pos = integrate(case, names, (), steps=60), integrate(case, names, steps=60)
    for name in names:
        with torch.no_grad():
            logits = case.model.run_with_hooks(
                case.corrupted, fwd_hooks=[(name, lambda x, hook: case.cache[hook.name])]
            )
            effect = case.per_document(logits) - result.metric_corrupted
        torch.testing.assert_close(result.by_document(name), effect, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(by_pos.by_document(name).sum(1), effect, rtol=1e-6, atol=1e-7)


def test_on_a_path_of_inputs_gradients_are_the_mean_of_those_of_interpolated_embeddings():
    case = case_of("hybrid")
    steps, names = 3, ["blocks.0.mixer.hook_ssm_dt", "blocks.1.hook_pattern", "blocks.1.hook_resid_mid"]
    result = integrate(case, names, steps=steps, path="inputs")
    with torch.no_grad():
        start = case.model.run_with_cache(case.corrupted)[1]
    for name in names:
        total = 0
        for share, weight in zip(*path_points(steps), strict=True):
            seen = []
            embedding = start["hook_embed"] + share * (case.cache["hook_embed"] - start["hook_embed"])
            hooks = [
                ("hook_embed", lambda x, hook, embedding=embedding: embedding),
                (name, lambda x, hook, seen=seen: seen.append(x) or x),
            ]
            logits = case.model.run_with_hooks(case.corrupted, fwd_hooks=hooks)
            (gradient,) = torch.autograd.grad(case.per_document(logits).sum(), seen)
            total = total + weight * gradient
        product = (total * (case.cache[name] - start[name])).movedim(case.model.hook_dict[name].pos_dim, 1)
        torch.testing.assert_close(result.by_document(name), product.flatten(2).sum(2), **CLOSE)


def test_on_a_path_of_inputs_the_embeddings_sum_to_the_effect_of_the_corruption():
    case = case_of("mamba")
    result = integrate(case, "hook_embed", steps=200, path="inputs")
    effect = result.metric_clean - result.metric_corrupted
    torch.testing.assert_close(result.by_document("hook_embed").sum(1), effect, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("path", "metric"), [("activations", "per_document"), ("inputs", "metric")])
def test_runs_at_a_time_change_nothing(path, metric):
    case = case_of("gated_delta_net")
    names = ["blocks.1.hook_resid_pre", "blocks.0.hook_ssm_state", "blocks.0.hook_conv_taps"]
    results = [
        integrate(case, names, metric=getattr(case, metric), steps=3, path=path, batch_size=n)
        for n in (None, 1, 2, 7)
    ]
    for result in results[1:]:
        for name in result.hooks:
            torch.testing.assert_close(result.by_document(name), results[0].by_document(name), **CLOSE)


def test_a_linear_metric_of_a_linear_end_is_integrated_exactly_by_the_gradient():
    """The logits are linear in what the final norm hands on."""
    case = case_of("hybrid")
    options = (case.model, case.clean, case.corrupted, lambda logits: (logits * case.readout).sum((-1, -2)))
    name = "ln_final.hook_normalized"
    one = gradient_attribution(*options, name)
    more = integrated_gradients(*options, name, steps=3)
    torch.testing.assert_close(one[name], more[name], **CLOSE)
    effect = one.metric_clean - one.metric_corrupted
    torch.testing.assert_close(one.by_document(name).sum(1), effect, **CLOSE)


def test_points_integrate_polynomials():
    points, weights = path_points(3)
    for power in range(6):
        assert float((weights * points**power).sum()) == pytest.approx(1 / (power + 1), rel=1e-12)


def test_options_must_make_sense():
    case = case_of("mamba")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        integrate(case, "resid_pre", steps=0)
    with pytest.raises(ValueError, match="path must be 'activations' or 'inputs', got 'input'"):
        integrate(case, "resid_pre", path="input")
