"""Edges whose gradients are averaged on a path from corrupted to clean."""

import pytest
import torch

from hooked_ssm.attribution import residual_graph
from hooked_ssm.attribution.nodes import path_points
from hooked_ssm.patching import patch_sweep

from ..patching.case import CLOSE, case_of
from .edge_case import READERS, edges_of, with_flags


@pytest.mark.parametrize("kind", ["attention", "gated_delta_net"])
def test_integrated_over_inputs_edges_are_writes_times_mean_gradients_at_reads(kind):
    """EAP-IG, written out for the edges from one write to the reads after it."""
    case, steps = case_of(kind), 3
    graph = residual_graph(case.model)
    result = edges_of(case, graph, steps=steps)
    reads = [name for name in graph.nodes if name.endswith(READERS) and "blocks.1" in name]
    writer = "blocks.0.hook_mlp_out"
    with_flags(case.model, graph.flags, True)
    try:
        with torch.no_grad():
            start, clean = (case.model.run_with_cache(t)[1] for t in (case.corrupted, case.clean))
        mean = dict.fromkeys(reads, 0)
        for share, weight in zip(*path_points(steps), strict=True):
            seen: dict = {}
            embedding = start["hook_embed"] + share * (clean["hook_embed"] - start["hook_embed"])
            hooks = [("hook_embed", lambda x, hook, embedding=embedding: embedding)]
            for name in reads:
                hooks.append((name, lambda x, hook, seen=seen: seen.__setitem__(hook.name, x) or x))
            logits = case.model.run_with_hooks(case.corrupted, fwd_hooks=hooks)
            gradients = torch.autograd.grad(case.per_document(logits).sum(), [seen[name] for name in reads])
            for name, gradient in zip(reads, gradients, strict=True):
                mean[name] = mean[name] + weight * gradient
    finally:
        with_flags(case.model, graph.flags, False)
    change = clean[writer] - start[writer]
    assert len(reads) == 5
    for name in reads:
        by_head = mean[name].ndim == 4
        expected = (mean[name] * (change.unsqueeze(2) if by_head else change)).sum(-1)
        expected = expected.sum(1).mean(0) if by_head else expected.sum(1).mean()
        torch.testing.assert_close(result[writer, name], expected, **CLOSE, msg=name)


@pytest.mark.parametrize("kind", ["mamba", "attention"])
def test_integrated_over_activations_edges_into_a_reader_sum_to_patching_it(kind):
    case = case_of(kind)
    graph = residual_graph(case.model)
    result = edges_of(case, graph, steps=40, path="activations")
    with_flags(case.model, graph.flags, True)
    try:
        with torch.no_grad():
            clean = case.model.run_with_cache(case.clean)[1]
        for name in ("q_input", "k_input", "v_input", "mlp_in"):
            if name == "mlp_in" and case.model.blocks[0].mlp is None:
                continue
            patched = patch_sweep(
                case.model, case.corrupted, clean, case.per_document, name, ("layer",), reduce="mean"
            )
            for layer in range(2):
                full = case.model.canonical_name(f"blocks.{layer}.hook_{name}")
                effect = patched[layer] - result.metric_corrupted.mean()
                torch.testing.assert_close(result.node(full).sum(), effect, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(result.incoming(full), result.node(full), **CLOSE)
    finally:
        with_flags(case.model, graph.flags, False)
    last = "blocks.1.hook_resid_post"
    effect = (result.metric_clean - result.metric_corrupted).mean()
    torch.testing.assert_close(result[last, "logits"], effect, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        ("per_document", {}),
        ("metric", {"at": "clean"}),
        ("metric", {"steps": 3}),
        ("per_document", {"steps": 2, "path": "activations"}),
    ],
)
def test_documents_at_a_time_change_nothing(metric, options):
    case = case_of("hybrid")
    results = [
        edges_of(case, "mixer", metric=getattr(case, metric), batch_size=n, **options) for n in (None, 2)
    ]
    for result in results[1:]:
        torch.testing.assert_close(result.metric_clean, results[0].metric_clean, **CLOSE)
        for edge, each in result.edges.by_doc.items():
            torch.testing.assert_close(each, results[0].edges.by_doc[edge], **CLOSE)
