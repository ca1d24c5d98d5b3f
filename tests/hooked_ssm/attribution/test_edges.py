"""Scores of edges: derivatives of what one node does through one other, and what they sum to."""

import pytest
import torch
from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch

from hooked_ssm.attribution import Graph, gradient_attribution, mixer_graph, residual_graph
from hooked_ssm.attribution.edges import Edges
from hooked_ssm.attribution.hooks import carries_forward, setting

from ..patching.case import CLOSE, DOCS, case_of
from .edge_case import READERS, edges_of

KINDS = ["attention", "mamba", "hybrid", "gated_delta_net"]
STEP = 1e-5


def out_sum(result, writer):
    total, n = 0, len(result.axes[writer])
    for reader in result.out_of(writer):
        score = result[writer, reader]
        total = total + (score.flatten(n).sum(-1) if score.ndim > n else score)
    return total


@pytest.mark.parametrize("kind", [*KINDS, "rotary", "mamba2", "based", "h3", "hyena", "gla"])
@pytest.mark.parametrize("graph", ["residual", "mixer"])
def test_edges_out_of_a_node_sum_to_its_score(kind, graph):
    case = case_of(kind)
    result = edges_of(case, graph)
    largest = 0.0
    for name in result.nodes.by_doc:
        torch.testing.assert_close(out_sum(result, name), result.node(name), **CLOSE, msg=name)
        largest = max(largest, float(result.node(name).abs().max()))
    assert largest > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("reads", ["qkv", "head"])
def test_edges_into_a_reader_of_the_residual_stream_sum_to_its_score(kind, positions, reads):
    case = case_of(kind)
    result = edges_of(case, residual_graph(case.model, reads=reads, positions=positions))
    readers = [name for name in result.nodes.by_doc if name.endswith(READERS)]
    assert len(readers) >= 2 * (3 if reads == "qkv" else 1) + 1
    for name in readers:
        torch.testing.assert_close(result.incoming(name), result.node(name), **CLOSE, msg=name)


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "gated_delta_net", "hyena"])
def test_taps_sum_to_the_convolution_and_are_all_that_leads_to_it(kind):
    case = case_of(kind)
    result = edges_of(case, "mixer")
    for layer in range(2):
        name = f"blocks.{layer}.mixer.hook_conv"
        assert result.into(name) == [f"{name}_taps"]
        torch.testing.assert_close(result[f"{name}_taps", name], result.node(f"{name}_taps"), **CLOSE)
        torch.testing.assert_close(result.incoming(name), result.node(name), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_have_the_scores_that_gradients_give_them(kind):
    """States (and the delta rule's writes) those of being read: in a graph every entry is a node."""
    case = case_of(kind)
    result = edges_of(case, mixer_graph(case.model, positions=True))
    for name in result.nodes.by_doc:
        if name.endswith("hook_mlp_in"):
            continue  # it fires in the graph alone
        if name == "hook_pos_embed":  # the same in both documents: refused where it is asked for by itself
            assert not result.node(name).any()
            continue
        each = gradient_attribution(
            case.model, case.clean, case.corrupted, case.per_document, name, result.axes[name], read_only=True
        )
        torch.testing.assert_close(result.node(name), each[name], **CLOSE, msg=name)


@pytest.mark.parametrize("kind", ["attention", "gated_delta_net", "hybrid"])
def test_edges_are_those_of_transformerlens(kind):
    case = case_of(kind)
    config = EdgeAttributionConfig(granularity="edge")
    theirs = attribution_patch(case.model, case.clean, case.corrupted, case.metric, config).edge_scores
    ours = edges_of(case, residual_graph(case.model, positions=True), metric=case.metric)

    def place(node):
        where = (node.position,) if node.head is None else (node.position, node.head)
        name = node.hook_name.replace("hook_z", "hook_result")
        return case.model.canonical_name(name), where

    compared, frame = 0, {}
    for (writer, reader), score in theirs.items():
        (a, at), (b, to) = place(writer), place(reader)
        if case.model.blocks[0].mlp is None and ("hook_mlp" in a or "hook_mlp" in b):
            assert score == 0
            continue
        if (a, b) not in frame:
            frame[a, b] = ours[a, b]
        # Over positions theirs has each writer at the position of the reader.
        assert float(frame[a, b][(*at, *to)]) == pytest.approx(score, rel=1e-8, abs=1e-11), (writer, reader)
        compared += 1
    assert compared > 100 and DOCS == len(case.clean)


def by_hand(case, result, order, writer, reader):
    """The derivative of the metric by a step of the writer that only the reader sees, and all after it: every
    other node before the reader is held, then the reader alone set to what it becomes. By differences."""
    model, names = case.model, list(result.nodes.by_doc)
    with torch.no_grad():
        start = model.run_with_cache(case.corrupted, names_filter=names)[1]
        change = case.cache[writer] - start[writer]

    def held(name, value):
        return name, lambda x, hook: setting(value, carries_forward(model, name))

    def run(step):
        seen = []
        values = {name: start[name] for name in order[: order.index(reader)]}
        values[writer] = start[writer] + step * change
        with torch.no_grad():
            hooks = [held(name, value) for name, value in values.items()]
            hooks.append((reader, lambda x, hook: seen.append(x.clone())))
            model.run_with_hooks(case.corrupted, fwd_hooks=hooks)
            return case.per_document(model.run_with_hooks(case.corrupted, fwd_hooks=[held(reader, seen[0])]))

    return ((run(STEP) - run(-STEP)) / (2 * STEP)).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_edges_inside_mixers_are_what_differences_say(kind):
    case = case_of(kind)
    case.model.set_use_hook_mlp_in(True)
    try:
        result = edges_of(case, "mixer")
        order: list[str] = []
        names = list(result.nodes.by_doc)
        with torch.no_grad():
            case.model.run_with_hooks(
                case.corrupted, fwd_hooks=[(n, lambda x, hook: order.append(hook.name)) for n in names]
            )
            cached = case.model.run_with_cache(case.clean)[1]
        whole = case.__class__(case.model, case.clean, case.corrupted, case.readout, cached)
        pairs = [(a, b) for a, b in result.edges.by_doc if b != "logits" and "conv_taps" not in a]
        assert len(pairs) > 20
        for writer, reader in pairs[::5]:
            expected = by_hand(whole, result, order, writer, reader)
            found = result[writer, reader].sum()
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=f"{writer} -> {reader}")
    finally:
        case.model.set_use_hook_mlp_in(False)


@pytest.mark.parametrize("graph", [residual_graph, mixer_graph])
@pytest.mark.parametrize("kind", ["mamba", "attention", "gated_delta_net"])
def test_positions_sum_to_edges_without_them(kind, graph):
    case = case_of(kind)
    apart = edges_of(case, graph(case.model, positions=True))
    whole = edges_of(case, graph(case.model))
    assert set(apart.edges.by_doc) == set(whole.edges.by_doc)
    for edge in whole.edges.by_doc:
        axes = [*apart.axes[edge[0]], *apart.axes[edge[1]]]
        at = [dim for dim, axis in enumerate(axes) if axis == "pos"]
        torch.testing.assert_close(apart[edge].sum(at), whole[edge], **CLOSE, msg=str(edge))


def test_edges_over_positions_lead_forward_and_only_where_something_mixes():
    case = case_of("mamba")
    result = edges_of(case, mixer_graph(case.model, positions=True))
    m = "blocks.0.mixer.hook_"
    state = result[f"{m}ssm_write", f"{m}ssm_state"]
    assert state.triu(1).abs().sum() > 0 and state.tril(-1).abs().max() == 0  # from row to column
    same = result[f"{m}ssm_state", f"{m}y"]
    assert same.diagonal().abs().sum() > 0 and (same - same.diagonal().diag()).abs().max() == 0
    taps = result["hook_embed", f"{m}conv_taps"]  # [pos, pos, tap]
    for tap in range(4):
        at = taps[..., tap]
        assert (at - at.diagonal(tap).diag(tap)).abs().max() == 0


def test_reading_a_sum_directly_is_the_same_as_one_backward_a_part(monkeypatch):
    case = case_of("attention")
    graph = residual_graph(case.model, positions=True)
    direct = edges_of(case, graph)
    original = Edges.__init__

    def without(self, problem, graph):
        original(self, problem, graph)
        self.reads_sums = False

    monkeypatch.setattr(Edges, "__init__", without)
    slow = edges_of(case, graph)
    for edge in direct.edges.by_doc:
        torch.testing.assert_close(direct[edge], slow[edge], **CLOSE, msg=str(edge))


def test_a_graph_can_be_a_list_of_hooks():
    """One layer's states and reads, with the embeddings: what lies between nodes counts as their edge."""
    case = case_of("mamba")
    result = edges_of(case, ["hook_embed", "blocks.1.hook_ssm_state", "blocks.1.hook_y"])
    assert set(result.edges.by_doc) == {
        ("hook_embed", "blocks.1.mixer.hook_ssm_state"),
        ("hook_embed", "blocks.1.mixer.hook_y"),
        ("blocks.1.mixer.hook_ssm_state", "blocks.1.mixer.hook_y"),
        ("hook_embed", "logits"),
        ("blocks.1.mixer.hook_y", "logits"),
    }
    torch.testing.assert_close(out_sum(result, "hook_embed"), result.node("hook_embed"), **CLOSE)
    total = gradient_attribution(case.model, case.clean, case.corrupted, case.per_document, "hook_embed", ())
    torch.testing.assert_close(result.node("hook_embed"), total["hook_embed"], **CLOSE)


def test_tables_name_both_ends():
    case = case_of("mamba")
    result = edges_of(case, "mixer")
    frame = result.frame()
    assert list(frame.columns) == ["writer", "writer_at", "reader", "reader_at", "score", "sem"]
    row = frame[frame.reader.eq("blocks.0.mixer.hook_conv")].iloc[1]
    taps = result["blocks.0.hook_conv_taps", "blocks.0.hook_conv"]
    assert row.score == pytest.approx(float(taps[row.writer_at]))
    assert len(result.frame(zeros=True)) == sum(result[edge].numel() for edge in result.edges.by_doc)
    assert result.top(3).score.abs().is_monotonic_decreasing
    with pytest.raises(KeyError, match="no edge from 'hook_embed' to 'blocks.0.hook_y'; edges into it"):
        result["hook_embed", "blocks.0.hook_y"]


def test_the_models_flags_are_as_they_were():
    case = case_of("hybrid")
    case.model.set_use_attn_in(True)
    try:
        edges_of(case, "residual")
        assert case.model.cfg.use_attn_in and not case.model.cfg.use_split_qkv_input
        with pytest.raises(ValueError, match="must return a scalar"):
            edges_of(case, "residual", metric=lambda logits: logits)
        assert case.model.cfg.use_attn_in and not case.model.cfg.use_split_qkv_input
    finally:
        case.model.set_use_attn_in(False)


def test_mistakes_are_named():
    case = case_of("hybrid")
    with pytest.raises(ValueError, match="graph must be 'residual', 'mixer'"):
        edges_of(case, "resid")
    with pytest.raises(KeyError, match="no hook named 'blocks.0.hook_gat'; did you mean"):
        edges_of(case, ["blocks.0.hook_gat"])
    with pytest.raises(ValueError, match="a graph needs one node or more"):
        Graph(())
    with pytest.raises(ValueError, match="flags must be among"):
        Graph(("hook_embed",), flags=("use_split",))
    with pytest.raises(ValueError, match="reads must be 'qkv' or 'head'"):
        residual_graph(case.model, reads="q")
    with pytest.raises(ValueError, match="leave out one of steps and at"):
        edges_of(case, steps=2, at="clean")
    with pytest.raises(ValueError, match="path must be 'inputs' or 'activations'"):
        edges_of(case, steps=2, path="input")
