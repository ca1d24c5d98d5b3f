"""TransformerLens's attribution patching by nodes and edges, and faithfulness of circuits of edges.

Its graph knows three reads of a mixer, q, k and v, and an MLP in every layer: each read of the residual
stream that an architecture has must lie on one of them, or the edges out of a writer would not sum to it.
"""

import pytest
import torch
from transformer_lens.tools.analysis import (
    EdgeAttributionConfig,
    FaithfulnessConfig,
    attribution_patch,
    faithfulness,
)

EDGES = EdgeAttributionConfig(granularity="edge")


def patch_a_little(node, clean_cache, corrupted_cache, step):
    """A hook that moves one node by `step` of the way from corrupted to clean."""
    name = node.hook_name
    move = torch.zeros_like(clean_cache[name])
    index = (0, node.position) if node.head is None else (0, node.position, node.head)
    move[index] = step * (clean_cache[name] - corrupted_cache[name])[index]
    return name, lambda x, hook: x + move


def test_node_scores_are_the_derivative_of_patching_the_node(case):
    model, clean, corrupted = case.model, case.clean[:1], case.corrupted[:1]
    result = attribution_patch(model, clean, corrupted, case.metric)
    cfg = model.cfg
    assert len(result.node_scores) == clean.shape[1] * (1 + cfg.n_layers * (cfg.n_heads + 1))
    caches = case.cached(clean), case.cached(corrupted)
    nodes = result.top_nodes(12) + list(result.node_scores.items())[::17]
    for node, score in nodes:
        ahead, behind = (
            case.measure([patch_a_little(node, *caches, step)], corrupted) for step in (1e-6, -1e-6)
        )
        assert score == pytest.approx((ahead - behind) / 2e-6, rel=1e-6, abs=1e-7), node
    assert abs(result.top_nodes(1)[0][1]) > 0.1


def test_edges_out_of_a_writer_sum_to_it(case):
    nodes = attribution_patch(case.model, case.clean, case.corrupted, case.metric)
    edges = attribution_patch(case.model, case.clean, case.corrupted, case.metric, EDGES)
    assert set(nodes.node_scores) == set(edges.node_scores)
    for node, score in nodes.node_scores.items():
        assert edges.node_scores[node] == pytest.approx(score, rel=1e-9, abs=1e-10), node


def test_every_fork_carries_something(case):
    """Of the edges into q, k and v of every later layer, and into MLPs where there are any, some matter."""
    result = attribution_patch(case.model, case.clean, case.corrupted, case.metric, EDGES)
    largest: dict = {}
    for (_, reader), score in result.edge_scores.items():
        key = reader.kind, reader.layer
        largest[key] = max(largest.get(key, 0.0), abs(score))
    for (kind, layer), score in largest.items():
        if kind == "mlp_in" and case.model.cfg.attn_only:
            assert score == 0
        else:
            assert score > 1e-4, (kind, layer)


def test_scores_of_a_batch_are_the_means_over_its_documents(case):
    batch = attribution_patch(case.model, case.clean, case.corrupted, case.metric)
    alone = [
        attribution_patch(case.model, case.clean[i : i + 1], case.corrupted[i : i + 1], case.metric)
        for i in range(len(case.clean))
    ]
    for node, score in batch.top_nodes(5):
        mean = sum(result.node_scores[node] for result in alone) / len(alone)
        assert score == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("flag", ["attn_in", "attn_result"])
def test_flags_are_as_they_were(case, flag):
    getattr(case.model, f"set_use_{flag}")(True)
    try:
        attribution_patch(case.model, case.clean[:1], case.corrupted[:1], case.metric, EDGES)
        cfg = case.model.cfg
        assert getattr(cfg, f"use_{flag}") and not cfg.use_split_qkv_input and not cfg.use_hook_mlp_in
    finally:
        getattr(case.model, f"set_use_{flag}")(False)


def test_the_whole_graph_is_faithful_and_none_of_it_is_not(case):
    clean, corrupted = case.clean[:1], case.corrupted[:1]
    edges = list(attribution_patch(case.model, clean, corrupted, case.metric, EDGES).edge_scores)
    whole = faithfulness(case.model, clean, corrupted, case.metric, edges)
    assert whole.recovered == 1.0
    assert whole.full_metric == pytest.approx(case.measure([], clean))
    assert whole.corrupt_metric == pytest.approx(case.measure([], corrupted))
    # Every reader's input rebuilt from corrupted writes is the corrupted run, which shows that no read of
    # the residual stream goes by another way.
    nothing = faithfulness(case.model, clean, corrupted, case.metric, [])
    assert nothing.recovered == pytest.approx(0.0, abs=1e-9)


def test_a_circuit_without_the_edges_into_the_logits_is_the_corrupted_end(case):
    """Keeping all but the edges into the logits leaves the corrupted final residual stream."""
    clean, corrupted = case.clean[:1], case.corrupted[:1]
    edges = list(attribution_patch(case.model, clean, corrupted, case.metric, EDGES).edge_scores)
    inner = [edge for edge in edges if edge[1].kind != "logits"]
    assert faithfulness(case.model, clean, corrupted, case.metric, inner).recovered == pytest.approx(
        0, abs=1e-9
    )
    only_embed = [edge for edge in edges if edge[1].kind == "logits" and edge[0].kind == "embed"]
    recovered = faithfulness(case.model, clean, corrupted, case.metric, only_embed)
    last = f"blocks.{case.model.cfg.n_layers - 1}.hook_resid_post"
    delta = case.cached(clean)["embed"] - case.cached(corrupted)["embed"]
    by_hand = case.measure([(last, lambda x, hook: x + delta)], corrupted)
    expected = (by_hand - recovered.corrupt_metric) / (recovered.full_metric - recovered.corrupt_metric)
    assert recovered.recovered == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_faithfulness_by_mean_ablation(case):
    """An empty circuit whose writers are replaced by one other document's writes is that document's run."""
    clean, corrupted = case.clean[:1], case.corrupted[:1]
    other = (clean + 1) % case.model.cfg.d_vocab
    result = faithfulness(
        case.model, clean, corrupted, case.metric, [], FaithfulnessConfig(ablation="mean"), mean_tokens=other
    )
    expected = (case.measure([], other) - result.corrupt_metric) / (
        result.full_metric - result.corrupt_metric
    )
    assert result.recovered == pytest.approx(expected, rel=1e-8, abs=1e-9)
