"""Which edges there are, by the names of their ends."""

import pytest
import torch

from hooked_ssm.attribution import Graph
from hooked_ssm.circuits import circuit_graph
from hooked_ssm.circuits.edges import EdgeIndex, check_graph
from hooked_ssm.circuits.roles import ELSEWHERE, default_roles, role_map

from ..models import scattered
from .case import ROLES, TASK, case_of


def ends(case, writer, reader):
    """Of the edges between two hooks: the writer's and the reader's role."""
    index = case.index
    a, b = index.hooks.index(writer), index.hooks.index(reader)
    return {
        (index.roles[i], index.roles[j]) for a_, i, _, b_, j, _ in index.ends.tolist() if (a_, b_) == (a, b)
    }


def test_what_only_reads_its_own_position_has_edges_within_roles():
    case = case_of("mamba")
    m = "blocks.0.mixer.hook_"
    for writer, reader in [("gate", "z"), ("ssm_state", "y"), ("ssm_C", "y"), ("conv", "x")]:
        assert ends(case, m + writer, m + reader) == {(role, role) for role in (*ROLES, ELSEWHERE)}


def test_states_and_attention_lead_forward():
    same = {(role, role) for role in (*ROLES, ELSEWHERE)}
    forward = {("key", "value"), ("key", "query"), ("value", "query")}
    forward |= {pair for role in ROLES for pair in [(role, ELSEWHERE), (ELSEWHERE, role)]}
    forward -= {("query", ELSEWHERE)}  # nothing is read after the query
    m = "blocks.0.mixer.hook_"
    assert ends(case_of("mamba"), f"{m}ssm_write", f"{m}ssm_state") == same | forward
    assert ends(case_of("attention"), f"{m}v", f"{m}z") == same | forward


def test_a_tap_reads_so_many_places_back():
    """At the value tap 1 is of the key; at the key it is of what stands before."""
    index = case_of("mamba").index
    taps = index.hooks.index("blocks.0.mixer.hook_conv_taps")
    embed = index.hooks.index("hook_embed")
    into = {
        (index.roles[i], index.roles[j], t)
        for a, i, _, b, j, t in index.ends.tolist()
        if (a, b) == (embed, taps)
    }
    assert {pair for pair in into if pair[1] == "value"} == {("value", "value", 0), ("key", "value", 1)}
    assert {pair for pair in into if pair[1] == "key"} == {("key", "key", 0), (ELSEWHERE, "key", 1)}


def test_the_last_layer_leads_to_the_logits_from_the_query_alone():
    case = case_of("attention")
    for name in ("hook_mixer_out", "hook_mlp_out"):
        assert {i for i, _ in ends(case, f"blocks.1.{name}", "logits")} == {"query"}
    assert {j for _, j in ends(case, "blocks.1.mixer.hook_z", "blocks.1.hook_mixer_out")} == {"query"}


def test_only_edges_on_a_way_from_begin_to_end_are_connected():
    ends = torch.tensor([[a, 0, 0, b, 0, 0] for a, b in [(0, 1), (1, 2), (0, 3), (2, 4), (3, 4), (1, 3)]])
    index = EdgeIndex(["embed", "a", "b", "c", "logits"], [("", 1)] * 5, ["key"], ends)
    assert index.sources() == [0]

    def connected(*numbers):
        edges = torch.zeros(6, dtype=torch.bool)
        edges[list(numbers)] = True
        return index.connected(edges).nonzero()[:, 0].tolist()

    assert connected(0, 1, 3) == [0, 1, 3]
    assert connected(1, 3) == []  # nothing begins at the embedding
    assert connected(0, 1, 2) == []  # nothing ends at the logits
    assert connected(0, 1, 2, 4, 5) == [0, 2, 4, 5]


def test_roles_are_positions_by_name_offset_or_number():
    docs = TASK.sample(6, 0)
    length = int(docs.answer_pos.max()) + 1
    where = role_map(("value+1", "key", "value", "2", "query"), docs.positions, (6, length))
    for doc in range(6):
        key, query = (int(docs.positions[name][doc]) for name in ("key", "query"))
        assert where[doc, key] == 1 and where[doc, key + 1] == 2 and where[doc, query] == 4
        assert where[doc, key + 2] == 0  # the divider or the next key
        assert where[doc, 2] == (3 if key == 3 else 2)  # named twice: the one named first
        assert where[doc, 0] == 5
    assert default_roles(docs.positions) == ("key", "value", "value+1", "value+2", "query")


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ((), "roles must be different names"),
        (("key", "key"), "roles must be different names"),
        (("key", "elsewhere"), "roles must be different names"),
        (("kye",), "a role is one of .*key.*; got 'kye'"),
        (("value+9",), r"no document has a position 'value\+9' .* within its 7 tokens"),
        (("7",), "no document has a position '7'"),
        (("key-1+2",), "a role is one of"),
    ],
)
def test_wrong_roles_are_named(roles, message):
    docs = TASK.sample(4, 0)
    with pytest.raises(ValueError, match=message):
        role_map(roles, docs.positions, (4, 7))


def test_a_graph_whose_edges_cannot_be_ablated_is_refused():
    model = scattered("attention")
    nodes = circuit_graph(model).nodes
    with pytest.raises(ValueError, match="all embeddings, hook_mixer_out and hook_mlp_out"):
        check_graph(model, Graph(tuple(name for name in nodes if name != "blocks.0.hook_mlp_out")))
    with pytest.raises(ValueError, match="needs no flags; got .* with flags .'use_attn_result'"):
        check_graph(model, Graph(nodes, flags=("use_attn_result",)))
    for name in ("blocks.0.hook_resid_mid", "blocks.0.hook_attn_scores", "ln_final.hook_normalized"):
        with pytest.raises(ValueError, match="without the residual stream"):
            check_graph(model, Graph((*nodes, name)))
    with pytest.raises(KeyError, match="no hook named 'blocks.0.hook_y'"):
        check_graph(model, Graph((*nodes, "blocks.0.hook_y")))


def test_layers_can_be_left_closed():
    model = scattered("mamba")
    nodes = circuit_graph(model, layers=[1], skip=["hook_conv"]).nodes
    assert "blocks.0.hook_mixer_out" in nodes and "blocks.1.mixer.hook_conv_taps" in nodes
    assert not any("blocks.0.mixer" in name or name.endswith("hook_conv") for name in nodes)
