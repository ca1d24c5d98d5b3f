"""Which hooks are the nodes of a graph of edges."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hooked_ssm.attribution.hooks import resolve

# Hooks that add to the residual stream, and hooks that carry it, before the norm of who reads it.
WRITES = ("hook_embed", "hook_pos_embed", "hook_result", "hook_mixer_out", "hook_mlp_out")
READS = (
    *("hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in", "hook_mlp_in"),
    *("hook_resid_pre", "hook_resid_mid", "hook_resid_post"),
)
# What is inside mixers, in the order of the vocabulary.
INSIDE = (
    *("hook_q_pre", "hook_k_pre", "hook_v_pre", "hook_conv_taps", "hook_conv", "hook_x", "hook_gate"),
    *("hook_ssm_dt", "hook_ssm_B", "hook_ssm_C", "hook_q", "hook_k", "hook_v", "hook_beta"),
    *("hook_ssm_decay", "hook_ssm_write", "hook_ssm_state", "hook_long_conv", "hook_y", "hook_z"),
)
FLAGS = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in")


@dataclass(frozen=True)
class Graph:
    """nodes: names of hooks, in any order; edges are found by what is computed from what.

    axes: a node is as many as it has of these axes ("head", "tap"; "pos" for a graph over positions).
    flags: TransformerLens's flags of the model that are on while the graph is looked at; the others are off.
    """

    nodes: tuple[str, ...]
    axes: tuple[str, ...] = ("head", "tap")
    flags: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.nodes:
            raise ValueError("a graph needs one node or more, got none.")
        unknown = [flag for flag in self.flags if flag not in FLAGS]
        if unknown:
            raise ValueError(f"flags must be among {FLAGS}, got {unknown}.")


def residual_graph(
    model: Any,
    *,
    reads: str = "qkv",
    writes: str = "head",
    positions: bool = False,
) -> Graph:
    """Writers and readers of the residual stream.

    Writers: embeddings, what each head (or each mixer) writes, MLPs. Readers: q, k and v of each head (or
    each head as one), MLPs, the final residual stream. Which mixer reads what as q, k and v says its `split`.
    """
    if reads not in ("qkv", "head") or writes not in ("head", "mixer"):
        raise ValueError(
            f"reads must be 'qkv' or 'head' and writes 'head' or 'mixer', got {reads!r} and {writes!r}."
        )
    inputs = ("q_input", "k_input", "v_input") if reads == "qkv" else ("attn_in",)
    output = "attn.hook_result" if writes == "head" else "hook_mixer_out"
    nodes = embeddings(model)
    for layer, block in enumerate(model.blocks):
        where = "" if reads == "head" else "mixer."
        nodes += [f"blocks.{layer}.{where}hook_{name}" for name in inputs]
        nodes.append(f"blocks.{layer}.{output.replace('attn.', 'mixer.')}")
        if block.mlp is not None:
            nodes += [f"blocks.{layer}.hook_mlp_in", f"blocks.{layer}.hook_mlp_out"]
    nodes.append(final(model))
    flags = ["use_hook_mlp_in", "use_split_qkv_input" if reads == "qkv" else "use_attn_in"]
    flags += ["use_attn_result"] * (writes == "head")
    return Graph(tuple(nodes), axes_of_nodes(positions), tuple(flags))


def mixer_graph(
    model: Any, *, layers: Sequence[int] | None = None, skip: Sequence[str] = (), positions: bool = False
) -> Graph:
    """All that is computed inside mixers, from the taps of the convolutions to states and reads, with the
    embeddings, mixers' and MLPs' writes and the final residual stream around it.

    layers: whose mixers are opened; None for all. skip: hooks that are no nodes, such as "hook_v".
    """
    inside = [name for name in INSIDE if name not in skip]
    nodes = embeddings(model)
    for layer, block in enumerate(model.blocks):
        if layers is None or layer in layers:
            unavailable = block.mixer.unavailable_hooks()
            # Where B, C and x are q, k and v, they are nodes under one of the names.
            twice = ("hook_q", "hook_k", "hook_v") if hasattr(block.mixer, "hook_ssm_B") else ()
            nodes += [
                f"blocks.{layer}.mixer.{name}"
                for name in inside
                if hasattr(block.mixer, name) and name not in unavailable and name not in twice
            ]
            if hasattr(block.mixer, "hook_attn_scores"):
                nodes.append(f"blocks.{layer}.mixer.hook_pattern")
        nodes.append(f"blocks.{layer}.hook_mixer_out")
        if block.mlp is not None:
            nodes += [f"blocks.{layer}.hook_mlp_in", f"blocks.{layer}.hook_mlp_out"]
    nodes.append(final(model))
    return Graph(tuple(nodes), axes_of_nodes(positions), ("use_hook_mlp_in",))


def axes_of_nodes(positions: bool) -> tuple[str, ...]:
    return ("pos", "head", "tap") if positions else ("head", "tap")


def embeddings(model: Any) -> list[str]:
    return [name for name in ("hook_embed", "hook_pos_embed") if name in model.hook_dict]


def final(model: Any) -> str:
    return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"


def graph_of(model: Any, graph: Graph | str | Sequence[str]) -> Graph:
    """A graph by name ("residual", "mixer"), from a list of hooks, or as it is."""
    if isinstance(graph, Graph):
        return graph
    if graph == "residual":
        return residual_graph(model)
    if graph == "mixer":
        return mixer_graph(model)
    if isinstance(graph, str):
        raise ValueError(f"graph must be 'residual', 'mixer', a Graph or a list of hooks, got {graph!r}.")
    flags = tuple(flag for flag in FLAGS if getattr(model.cfg, flag, False))
    return Graph(tuple(resolve(model, list(graph))), flags=flags)


@contextmanager
def flags_of(model: Any, graph: Graph) -> Iterator[None]:
    """The model with the graph's flags, and afterwards with those it had."""
    before = {flag: getattr(model.cfg, flag, False) for flag in FLAGS}
    try:
        set_flags(model, {flag: flag in graph.flags for flag in FLAGS})
        yield
    finally:
        set_flags(model, before)


def set_flags(model: Any, flags: dict[str, bool]) -> None:
    for flag, use in sorted(flags.items(), key=lambda item: item[1]):  # off first: some exclude each other
        if getattr(model.cfg, flag, False) != use:
            getattr(model, f"set_{flag}")(use)


def sums_of_writes(model: Any, nodes: Sequence[str]) -> bool:
    """Whether all writes are nodes, so that what reads the residual stream is a sum of nodes."""
    have = set(nodes)
    return {name for name in embeddings(model)} <= have and all(
        have & {f"blocks.{layer}.hook_mixer_out", f"blocks.{layer}.mixer.hook_result"}
        and (getattr(block, "mlp", None) is None or f"blocks.{layer}.hook_mlp_out" in have)
        for layer, block in enumerate(model.blocks)
    )
