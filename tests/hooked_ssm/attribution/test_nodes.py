"""Scores of nodes: derivatives of patching, whatever the hook, the axes and the way they are computed."""

import pytest
import torch
from transformer_lens.tools.analysis.attribution_patching import (
    attribution_patch,
    cache_activation_and_gradient,
)

from hooked_ssm.attribution import gradient_attribution
from hooked_ssm.ops.state_edit import StateEdit
from hooked_ssm.patching import patch_sweep

from ..models import scattered
from ..patching.case import CLOSE, DOCS, case_of

KINDS = ["attention", "mamba", "hybrid", "gated_delta_net"]
STEP = 1e-5
NEAR = {"rtol": 1e-5, "atol": 1e-7}  # of central differences: STEP^2 of curvature, and rounding over STEP


def attribute(case, hooks=None, axes=("pos",), **options):
    return gradient_attribution(
        case.model,
        case.clean,
        case.corrupted,
        options.pop("metric", case.per_document),
        hooks,
        axes,
        **options,
    )


def derivative(case, name, move):
    """Of every document's metric, by a step of the activation in the direction `move`, as `edit` makes it."""

    def run(step):
        with torch.no_grad():
            edit = lambda x, hook: x + step * move
            return case.per_document(case.model.run_with_hooks(case.corrupted, fwd_hooks=[(name, edit)]))

    return (run(STEP) - run(-STEP)) / (2 * STEP)


CORRUPTED: dict = {}  # caches of corrupted runs, by the model, of which there is one a kind


def corrupted_cache(case):
    if case.model not in CORRUPTED:
        with torch.no_grad():
            CORRUPTED[case.model] = case.model.run_with_cache(case.corrupted)[1]
    return CORRUPTED[case.model]


def apart(case, name):
    corrupted = corrupted_cache(case)[name]
    return torch.where(case.cache[name] == corrupted, 0.0, case.cache[name] - corrupted)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_derivative_of_patching_a_position(kind):
    case = case_of(kind)
    result = attribute(case)
    assert set(result.hooks) == set(case.model.hook_table().query("unavailable == ''").name)
    for number, name in enumerate(result.hooks):
        pos_dim, pos = case.model.hook_dict[name].pos_dim, (1, 4)[number % 2]
        change = apart(case, name)
        move = torch.zeros_like(change)
        move.select(pos_dim, pos).copy_(change.select(pos_dim, pos))
        expected = derivative(case, name, move)
        torch.testing.assert_close(result.by_document(name)[:, pos], expected, **NEAR, msg=name)


@pytest.mark.parametrize("kind", ["attention", "gated_delta_net", "hybrid by channel", "mamba2", "h3"])
def test_all_hooks_at_once_are_one_hook_at_a_time(kind):
    case = case_of(kind)
    result = attribute(case)
    for name in result.hooks:
        seen = []
        logits = case.model.run_with_hooks(
            case.corrupted, fwd_hooks=[(name, lambda x, hook, seen=seen: seen.append(x) or x)]
        )
        (gradient,) = torch.autograd.grad(case.per_document(logits).sum(), seen)
        product = (apart(case, name) * gradient).movedim(case.model.hook_dict[name].pos_dim, 1)
        torch.testing.assert_close(result.by_document(name), product.flatten(2).sum(2), **CLOSE)


@pytest.mark.parametrize("kind", ["mamba", "gated_delta_net", "attention"])
def test_scores_are_what_patching_comes_to_as_it_shrinks(kind):
    """Patching with corrupted + eps (clean - corrupted): what is left of the difference is of order eps."""
    case = case_of(kind)
    names = ["resid_pre", "z"]
    names += ["pattern"] if kind == "attention" else ["conv_taps", "ssm_write", "ssm_state"]
    result = attribute(case, names)
    base = case.per_document(case.model(case.corrupted)).mean().detach()
    corrupted = corrupted_cache(case)
    for name in names:
        pos = "dest" if name == "pattern" else "pos"
        errors = []
        for eps in (1e-3, 1e-5):
            near = {hook: corrupted[hook] + eps * apart(case, hook) for hook in result.hooks}
            patched = patch_sweep(
                case.model, case.corrupted, near, case.per_document, name, ("layer", pos), reduce="mean"
            )
            errors.append(((patched - base) / eps - result.by_layer(name)).abs().max())
        assert errors[0] > 1e-9, name  # there is something to converge
        assert errors[1] < max(0.02 * errors[0], 1e-8), (name, errors)


def test_axes_tell_parts_apart():
    case = case_of("mamba")
    taps = attribute(case, "conv_taps", ("tap", "channel"))
    assert taps.axes == ("tap", "channel") and taps["blocks.0.hook_conv_taps"].shape == (4, 16)
    by_group = attribute(case, "conv_taps", ("tap", "channel"), groups={"channel": 3})
    for layer in range(2):
        name = f"blocks.{layer}.mixer.hook_conv_taps"
        groups = [part.sum(-1) for part in taps[name].tensor_split([5, 10], dim=-1)]
        torch.testing.assert_close(by_group[name], torch.stack(groups, -1), **CLOSE)
    both = attribute(case, ["gate", "hook_embed"], ("head", "pos"))
    whole = attribute(case, ["gate", "hook_embed"], ())
    pos = attribute(case, ["gate", "hook_embed"], ("pos",))
    for name in whole.hooks:
        assert both[name].shape == (2, 6)
        torch.testing.assert_close(both[name].sum(0), pos[name], **CLOSE)
        torch.testing.assert_close(both[name].sum(), whole[name], **CLOSE)
    move = torch.zeros_like(apart(case, "blocks.1.hook_gate"))
    move[:, 3, :8] = apart(case, "blocks.1.hook_gate")[:, 3, :8]
    expected = derivative(case, "blocks.1.hook_gate", move)
    torch.testing.assert_close(both.by_document("blocks.1.hook_gate")[:, 0, 3], expected, **NEAR)


@pytest.mark.parametrize("kind", ["mamba", "gated_delta_net", "h3", "gla"])
def test_states_without_positions_or_only_read_do_not_count_twice(kind):
    """All states set at once, and one set with the later ones held: as a `StateEdit` does it."""
    case = case_of(kind)
    name = "blocks.0.mixer.hook_ssm_state"
    whole, read = attribute(case, name, ()), attribute(case, name, read_only=True)
    torch.testing.assert_close(whole[name], read[name].sum(), **CLOSE)
    assert (attribute(case, name)[name] - read[name]).abs().max() > 1e-3  # carrying on counts
    change = apart(case, name)

    def run(step, positions):
        def edit(states, hook):
            move = torch.zeros_like(change)
            move[:, positions] = change[:, positions]
            return StateEdit(states + step * move, torch.ones((), dtype=torch.bool))

        with torch.no_grad():
            return case.per_document(case.model.run_with_hooks(case.corrupted, fwd_hooks=[(name, edit)]))

    for positions, found in ((slice(None), whole.by_document(name)), (3, read.by_document(name)[:, 3])):
        expected = (run(STEP, positions) - run(-STEP, positions)) / (2 * STEP)
        torch.testing.assert_close(found, expected, **NEAR)


def test_one_value_a_document_gives_means_and_standard_errors_and_a_scalar_sums():
    case = case_of("hybrid")
    each, total = attribute(case, "resid_pre"), attribute(case, "resid_pre", metric=case.metric)
    name = "blocks.1.hook_resid_pre"
    by_doc = each.by_document(name)
    torch.testing.assert_close(each[name], by_doc.mean(0), **CLOSE)
    torch.testing.assert_close(total[name], by_doc.mean(0), **CLOSE)  # the metric is a mean
    torch.testing.assert_close(total.by_document(name), by_doc / DOCS, **CLOSE)
    torch.testing.assert_close(each.sem(name), by_doc.std(0) / DOCS**0.5, **CLOSE)
    assert total.sem(name).isnan().all() and total.metric_clean.ndim == 0
    alone = gradient_attribution(
        case.model, case.clean[:1], case.corrupted[:1], case.per_document, "resid_pre"
    )
    torch.testing.assert_close(alone[name], by_doc[0], **CLOSE)
    assert alone.sem(name).isnan().all()
    with torch.no_grad():
        torch.testing.assert_close(each.metric_clean, case.per_document(case.model(case.clean)), **CLOSE)
        expected = case.per_document(case.model(case.corrupted))
        torch.testing.assert_close(each.metric_corrupted, expected, **CLOSE)


@pytest.mark.parametrize("at", ["corrupted", "clean"])
@pytest.mark.parametrize("metric", ["per_document", "metric"])
def test_documents_at_a_time_change_nothing(at, metric):
    case = case_of("mamba")
    results = [attribute(case, metric=getattr(case, metric), at=at, batch_size=n) for n in (None, 1, 2, 99)]
    for result in results[1:]:
        torch.testing.assert_close(result.metric_clean, results[0].metric_clean, **CLOSE)
        torch.testing.assert_close(result.metric_corrupted, results[0].metric_corrupted, **CLOSE)
        for name in result.hooks:
            torch.testing.assert_close(result.by_document(name), results[0].by_document(name), **CLOSE)


def test_gradients_can_be_the_clean_runs():
    case = case_of("hybrid")
    turned = gradient_attribution(case.model, case.corrupted, case.clean, case.per_document)
    result = attribute(case, at="clean")
    for name in result.hooks:
        torch.testing.assert_close(result[name], -turned[name], **CLOSE)


def test_logits_are_computed_where_the_metric_reads():
    case = case_of("mamba")
    readout = case.readout[-1]
    last = attribute(case, metric=lambda logits: (logits.tanh() * readout).sum(-1), logit_positions=-1)
    full = attribute(case, metric=lambda logits: (logits[:, -1].tanh() * readout).sum(-1))
    for name in last.hooks:
        torch.testing.assert_close(last[name], full[name], **CLOSE)


def test_it_takes_two_forwards():
    case = case_of("hybrid")
    forwards = []
    handle = case.model.ln_final.register_forward_hook(lambda *_: forwards.append(1))
    try:
        attribute(case)
    finally:
        handle.remove()
    assert len(forwards) == 2


def test_frozen_weights_and_no_grad_change_nothing_and_nothing_is_left_behind():
    case, frozen = case_of("gated_delta_net"), scattered("gated_delta_net").requires_grad_(False)
    hooks = ["resid_pre", "ssm_state", "ssm_write", "conv_taps"]
    expected = attribute(case, hooks)
    with torch.no_grad():
        silent = attribute(case, hooks)
    of_frozen = gradient_attribution(frozen, case.clean, case.corrupted, case.per_document, hooks)
    for name in expected.hooks:
        torch.testing.assert_close(silent[name], expected[name], **CLOSE)
        torch.testing.assert_close(of_frozen[name], expected[name], **CLOSE)
    assert all(p.grad is None for p in case.model.parameters())
    assert not any(hook.attached for hook in case.model.hook_points())


def test_names_are_aliases_activations_or_filters():
    case = case_of("mamba")
    by_alias = attribute(case, ["blocks.0.attn.hook_z", "blocks.1.hook_z"])
    by_activation, by_filter = attribute(case, "z"), attribute(case, lambda name: name.endswith(".hook_z"))
    assert (
        by_alias.hooks
        == by_activation.hooks
        == by_filter.hooks
        == [
            "blocks.0.mixer.hook_z",
            "blocks.1.mixer.hook_z",
        ]
    )
    assert torch.equal(by_activation["blocks.1.hook_z"], by_activation["blocks.1.mixer.hook_z"])
    with pytest.raises(KeyError, match="no scores of 'blocks.0.hook_y'"):
        by_activation["blocks.0.hook_y"]


def test_layers_without_a_hook_are_nan():
    result = attribute(case_of("hybrid"), "ssm_state")
    by_layer = result.by_layer("ssm_state")
    assert by_layer.shape == (2, 6) and by_layer[1].isnan().all() and not by_layer[0].isnan().any()


def test_a_table_has_a_row_a_score():
    result = attribute(case_of("mamba"), ["conv_taps", "hook_embed"], ("pos",))
    frame = result.frame()
    assert list(frame.columns) == ["hook", "layer", "pos", "score", "sem"] and len(frame) == 3 * 6
    row = frame[(frame.layer == 1) & (frame.pos == 3)].iloc[0]
    assert row.score == pytest.approx(float(result["blocks.1.hook_conv_taps"][3]))
    assert frame.layer.isna().sum() == 6
    top = result.top(4)
    assert len(top) == 4 and top.score.abs().is_monotonic_decreasing
    assert top.score.abs().iloc[0] == frame.score.abs().max()


def test_node_scores_of_transformerlens_agree():
    case = case_of("attention")
    theirs = attribution_patch(case.model, case.clean, case.corrupted, case.metric).node_scores
    ours = attribute(case, ["z", "mlp_out", "hook_embed"], metric=case.metric)
    z = attribute(case, "z", ("pos", "head"), metric=case.metric)
    for node, score in theirs.items():
        found = ours if node.head is None else z
        place = node.position if node.head is None else (node.position, node.head)
        assert float(found[node.hook_name][place]) == pytest.approx(score, rel=1e-9, abs=1e-12)


def test_a_bridge_has_gradients_at_its_hooks():
    case = case_of("a bridge")
    names = ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.hook_mlp_out"]
    result = attribute(case, names, metric=case.metric)
    found = cache_activation_and_gradient(case.model, case.corrupted, case.metric, names)
    clean = cache_activation_and_gradient(case.model, case.clean, case.metric, names, compute_gradient=False)
    for name in names:
        product = (clean.activations[name] - found.activations[name]) * found.gradients[name]
        expected = product.flatten(2).sum((0, 2))
        torch.testing.assert_close(result[name], expected, **CLOSE)


def test_a_hook_that_the_metric_does_not_read_is_named():
    case = case_of("mamba")
    case.model.add_hook("ln_final.hook_normalized", lambda x, hook: x.detach())
    try:
        with pytest.raises(ValueError, match="'blocks.1.hook_resid_post' does not lie between"):
            attribute(case, "blocks.1.hook_resid_post")
    finally:
        case.model.reset_hooks()
