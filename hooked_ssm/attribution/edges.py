"""Attribution of edges: of what one activation does through one other.

The run is cut at every node: what comes in is kept, and a leaf with the same value goes on. So the derivative
of a node b by another, a, is of what is computed from a by no other node, and

    edge(a -> b) = (clean - corrupted)_a . (db/da)^T g_b,        g_a = sum_b (db/da)^T g_b

with g the metric's gradient. It is one backward in all, taken in pieces from the last node to the first. A
node's outgoing edges sum to its score, (clean - corrupted) . g, exactly. The incoming edges do where a node
is linear in the nodes before it: where it reads the residual stream (before its norm) and all writes are
nodes, and the convolution, of its taps. Elsewhere they do to first order.

With writers and readers of the residual stream for nodes this is edge attribution patching (EAP: Syed et al.
2023, arXiv:2310.10348); with gradients averaged over interpolated embeddings EAP-IG (Hanna et al. 2024,
arXiv:2403.17806).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_ssm.attribution.cuts import Cuts
from hooked_ssm.attribution.graph import READS, WRITES, Graph, flags_of, graph_of, sums_of_writes
from hooked_ssm.attribution.hooks import (
    aliases_of,
    check_fired,
    resolve,
)
from hooked_ssm.attribution.nodes import input_path, path_points
from hooked_ssm.attribution.own_paths import OwnPaths
from hooked_ssm.attribution.pair import Pair
from hooked_ssm.attribution.problem import Problem, Rows, Run
from hooked_ssm.attribution.reduce import Parts
from hooked_ssm.attribution.result import EdgeAttribution, Scores, add_rows
from hooked_ssm.patching.logits import LogitPositions

LOGITS = "logits"  # the reader at the end


def edge_attribution(
    model: Any,
    clean_tokens: Int[Tensor, "doc pos"],
    corrupted_tokens: Int[Tensor, "corrupted_doc corrupted_pos"],
    metric: Callable[[Tensor], Any],
    graph: Graph | str | Sequence[str] = "residual",
    *,
    steps: int | None = None,
    path: str = "inputs",
    at: str = "corrupted",
    logit_positions: LogitPositions = None,
    batch_size: int | None = None,
) -> EdgeAttribution:
    """Scores of all edges of a graph of hooks, and of its nodes.

    graph: "residual" (writers and readers of the residual stream), "mixer" (and what is inside mixers), hooks
        as `gradient_attribution` takes them, or a `Graph`, which says what else there is to choose.
    steps: None for the gradient at the corrupted (or the clean) run; a number for gradients averaged over so
        many runs on a path from corrupted to clean.
    path: of the token embeddings ("inputs", EAP-IG), or of each reader's own activation in runs of its own
        that are otherwise corrupted ("activations"): where a reader is linear in its writers its edges then
        sum to what patching it does, while a writer's edges no longer sum to its score.
    metric, at, logit_positions, batch_size: as in `gradient_attribution`.

    With positions among the graph's axes an edge is from a position to a position. Where it does not just
    read the residual stream that takes one backward, through one node, a position.

    A state's entries are nodes of their own: its edges lead from writes to what reads it, not from state to
    state, and its score is of what reads it.
    """
    if at not in ("corrupted", "clean"):
        raise ValueError(f"at must be 'corrupted' or 'clean', got {at!r}.")
    if steps is not None and at != "corrupted":
        raise ValueError(
            "steps average over the whole way from corrupted to clean: leave out one of steps and at."
        )
    problem = Problem(model, clean_tokens, corrupted_tokens, metric, logit_positions)
    named, graph = not isinstance(graph, str), graph_of(model, graph)
    if path not in ("inputs", "activations"):
        raise ValueError(f"path must be 'inputs' or 'activations', got {path!r}.")
    on_inputs = steps is not None and path == "inputs"
    points, weights = path_points(steps if steps is not None and on_inputs else 1)
    with flags_of(model, graph):
        edges = Edges(problem, graph)
        embedding = input_path(problem, points) if on_inputs else None
        if steps is not None and not on_inputs:
            edges.means = OwnPaths(problem, edges.names, steps, batch_size)
        base = problem.clean if at == "clean" else problem.corrupted

        def run(rows: Rows) -> Run:
            cuts = Cuts(model, edges.names)
            hooks = cuts.hooks if embedding is None else [embedding(rows), *cuts.hooks]
            final = problem.final(base[rows.doc], rows.doc, hooks)
            check_fired(edges.names, cuts.after)
            edges.cuts = cuts
            return Run(final, cuts.after)

        for rows, done, by_final in problem.runs(run, len(points), batch_size):
            edges.add(rows, done, by_final, weights, "" if on_inputs else at)
        for name, scores in edges.nodes.items():
            if named and not scores.any():
                problem.check_between(name, replaced=False)
        return edges.result()


class Edges:
    """Scores of edges and nodes, added up over runs."""

    cuts: Cuts
    means: OwnPaths | None = None

    def __init__(self, problem: Problem, graph: Graph):
        self.problem, self.graph = problem, graph
        self.names = resolve(problem.model, graph.nodes)
        self.reads_sums = sums_of_writes(problem.model, self.names)
        self.pair = Pair(problem, self.names)
        self.axes: dict[str, tuple[str, ...]] = {}
        self.edges: dict[tuple[str, str], Tensor] = {}
        self.nodes: dict[str, Tensor] = {}

    def add(
        self, rows: Rows, done: Run, by_final: Tensor, weights: Float[Tensor, " point"], done_of: str
    ) -> None:
        docs, place = rows.doc.unique(return_inverse=True)
        apart = self.pair.difference(docs, done_of, done)
        self.apart = {name: tensor[place] for name, tensor in apart.items()}
        order = list(self.cuts.after)
        self.parts = {name: self._parts(name) for name in order}
        self.axes = {name: parts.axes for name, parts in self.parts.items()} | {LOGITS: ()}

        def keep(found: dict, key: Any, scores: Tensor) -> None:
            add_rows(found, key, scores, rows, weights, self.problem.docs)

        total: dict[str, Tensor] = {}
        for name, gradient in self._pulled_back(done.final, order, by_final).items():
            if self.means is not None:
                gradient = self.means.direct(name, order)[rows.doc]
            total[name] = gradient
            keep(self.edges, (name, LOGITS), self._score(name, gradient))
        for number in reversed(range(len(order))):
            reader = order[number]
            if reader not in total:
                raise ValueError(
                    f"{reader!r} does not lie between the inputs and the metric: nothing after it reads it."
                )
            if self.means is not None:
                total[reader] = self.means.gradient(reader)[rows.doc]
            keep(self.nodes, reader, self._score(reader, total[reader]))
            writers = self._pulled_back(self.cuts.before[reader], order[:number], total[reader])
            for writer, gradient in writers.items():
                total[writer] = total[writer] + gradient if writer in total else gradient
            for writer, scores in self._edges_into(reader, total[reader], writers).items():
                keep(self.edges, (writer, reader), scores)

    def _parts(self, name: str) -> Parts:
        declared = self.problem.model.hook_dict[name].shape.split()
        axes = [
            axis for axis in self.graph.axes if axis in declared or (axis == "pos" and "dest" in declared)
        ]
        return Parts(self.problem.model, name, self.cuts.after[name].shape, axes)

    @torch.no_grad()
    def _score(self, writer: str, gradient: Tensor) -> Float[Tensor, "row ..."]:
        return self.parts[writer].sum(self.apart[writer] * gradient)

    def _pulled_back(self, of: Tensor, names: list[str], gradient: Tensor) -> dict[str, Tensor]:
        """(d of / d node)^T gradient for those of the nodes that it is computed from."""
        if not of.requires_grad or not names:
            return {}
        leaves = [self.cuts.after[name] for name in names]
        found = torch.autograd.grad(of, leaves, gradient, retain_graph=True, allow_unused=True)
        return {name: g for name, g in zip(names, found, strict=True) if g is not None}

    def _edges_into(
        self, reader: str, gradient: Tensor, writers: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, "row ..."]]:
        """[row, *writer's axes, *reader's axes] by writer."""
        parts = self.parts[reader]
        if not parts.axes:
            return {writer: self._score(writer, each) for writer, each in writers.items()}
        summed = self.reads_sums and reader.endswith(READS)
        out = {w: self._of_sum(w, reader, gradient) for w in writers if summed and w.endswith(WRITES)}
        rest = [writer for writer in writers if writer not in out]
        if rest:
            stacked: dict[str, list[Tensor]] = {writer: [] for writer in rest}
            for index in itertools.product(*map(range, parts.sizes)):
                pulled = self._pulled_back(self.cuts.before[reader], rest, parts.masked(gradient, index))
                for writer in rest:
                    stacked[writer].append(self._score(writer, pulled[writer]))
            out |= {w: torch.stack(each, -1).unflatten(-1, parts.sizes) for w, each in stacked.items()}
        return {writer: out[writer] for writer in writers}

    @torch.no_grad()
    def _of_sum(self, writer: str, reader: str, gradient: Tensor) -> Float[Tensor, "row ..."]:
        """Edges to what is a sum of writes: (clean - corrupted) of the write . gradient at the reader."""
        by_head = [
            tensor if tensor.ndim == 4 else tensor.unsqueeze(2) for tensor in (self.apart[writer], gradient)
        ]
        axes = self.parts[writer].axes, self.parts[reader].axes
        if "pos" in axes[0]:
            scores = torch.einsum("bpwd,bprd->bwrp", *by_head).diag_embed()
            order = {"pos": 3, "head": 1}, {"pos": 4, "head": 2}
        else:
            scores = torch.einsum("bpwd,bprd->bwr", *by_head)
            order = {"head": 1}, {"head": 2}
        wanted = [place[axis] for place, each in zip(order, axes, strict=True) for axis in each]
        gone = [dim for dim in range(1, scores.ndim) if dim not in wanted]
        kept = [0, *(dim for dim in range(1, scores.ndim) if dim in wanted)]
        scores = scores.sum(gone) if gone else scores
        return scores.permute(0, *(kept.index(dim) for dim in wanted))

    def result(self) -> EdgeAttribution:
        clean, corrupted = self.pair.metrics()
        one_metric = clean.ndim == 0
        return EdgeAttribution(
            axes=self.axes,
            edges=Scores(self.edges, one_metric),
            nodes=Scores(self.nodes, one_metric),
            metric_clean=clean,
            metric_corrupted=corrupted,
            aliases=aliases_of(self.problem.model),
        )
