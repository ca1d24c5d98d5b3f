"""What attribution found: tensors for every document, their means with standard errors, and tables."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities.components_utils import get_act_name

from hooked_ssm.attribution.problem import Rows
from hooked_ssm.patching.names import layer_of


@dataclass(frozen=True, eq=False)
class Scores:
    """by_doc: what each document contributes, [doc, ...], by key.

    Where the metric gave one value a document these are the documents' scores: the score is their mean, with
    a standard error. Where it gave a scalar (`one_metric`) the score is their sum, without one.
    """

    by_doc: dict[Any, Tensor]
    one_metric: bool

    def score(self, key: Any) -> Tensor:
        each = self.by_doc[key]
        return each.sum(0) if self.one_metric else each.mean(0)

    def sem(self, key: Any) -> Tensor:
        """Standard error of the mean; NaN for a scalar metric and for a single document."""
        each = self.by_doc[key]
        if self.one_metric or len(each) < 2:
            return torch.full_like(each[0], torch.nan)
        return each.std(0) / len(each) ** 0.5


@dataclass(frozen=True, eq=False)
class Attribution:
    """Scores of hooks, [*axes] each, by full name or alias: `result["blocks.0.hook_conv"]`.

    axes: what the scores' axes are. scores: see `Scores`; `scores.by_doc` has the documents' own.
    metric_clean, metric_corrupted: the metric of the two runs, [doc] or a scalar.
    """

    axes: tuple[str, ...]
    scores: Scores
    metric_clean: Tensor
    metric_corrupted: Tensor
    n_layers: int
    aliases: dict[str, str] = field(repr=False)

    @property
    def hooks(self) -> list[str]:
        return list(self.scores.by_doc)

    def name(self, hook: str) -> str:
        name = self.aliases.get(hook, hook)
        if name not in self.scores.by_doc:
            raise KeyError(f"no scores of {hook!r}; there are scores of {self.hooks}.")
        return name

    def __getitem__(self, hook: str) -> Float[Tensor, "..."]:
        return self.scores.score(self.name(hook))

    def sem(self, hook: str) -> Float[Tensor, "..."]:
        """Standard error over documents of the score."""
        return self.scores.sem(self.name(hook))

    def by_document(self, hook: str) -> Float[Tensor, "doc ..."]:
        return self.scores.by_doc[self.name(hook)]

    def by_layer(self, activation_name: str) -> Float[Tensor, "layer ..."]:
        """The scores of one hook in all layers, as a sweep has them: NaN in layers without it."""
        names = [get_act_name(activation_name, layer) for layer in range(self.n_layers)]
        names = [self.aliases.get(name, name) for name in names]
        found = {name: self[name] for name in names if name in self.scores.by_doc}
        if not found:
            self.name(names[0])
        shape = [max(sizes) for sizes in zip(*(score.shape for score in found.values()), strict=True)]
        some = next(iter(found.values()))
        out = some.new_full((self.n_layers, *shape), torch.nan)
        for layer, name in enumerate(names):
            if name in found:
                out[(layer, *(slice(size) for size in found[name].shape))] = found[name]
        return out

    def frame(self) -> pd.DataFrame:
        """One row a score: hook, layer, *axes, score, sem."""
        rows = []
        for name in self.hooks:
            score, sem = self.scores.score(name), self.scores.sem(name)
            rows += [(name, layer_of(name), *at, a, b) for at, a, b in entries(score, sem)]
        frame = pd.DataFrame(rows, columns=["hook", "layer", *self.axes, "score", "sem"])
        return frame.astype({"layer": "Int64"})

    def top(self, k: int = 10) -> pd.DataFrame:
        """The k rows of `frame` with the largest scores, of either sign."""
        return largest(self.frame(), k)


@dataclass(frozen=True, eq=False)
class EdgeAttribution:
    """Scores of edges (writer, reader), both full names: [*writer's axes, *reader's axes].

    nodes: the scores of the nodes, [*axes]: a writer's is the sum of its outgoing edges.
    axes: of every node, what its axes are.
    metric_clean, metric_corrupted: the metric of the two runs, [doc] or a scalar.
    """

    axes: dict[str, tuple[str, ...]]
    edges: Scores
    nodes: Scores
    metric_clean: Tensor
    metric_corrupted: Tensor
    aliases: dict[str, str] = field(repr=False)

    def __getitem__(self, edge: tuple[str, str]) -> Float[Tensor, "..."]:
        writer, reader = (self.aliases.get(name, name) for name in edge)
        if (writer, reader) not in self.edges.by_doc:
            raise KeyError(f"no edge from {edge[0]!r} to {edge[1]!r}; edges into it: {self.into(edge[1])}.")
        return self.edges.score((writer, reader))

    def node(self, name: str) -> Float[Tensor, "..."]:
        return self.nodes.score(self.aliases.get(name, name))

    def into(self, reader: str) -> list[str]:
        """The writers with an edge into it."""
        reader = self.aliases.get(reader, reader)
        return [a for a, b in self.edges.by_doc if b == reader]

    def out_of(self, writer: str) -> list[str]:
        """The readers with an edge from it."""
        writer = self.aliases.get(writer, writer)
        return [b for a, b in self.edges.by_doc if a == writer]

    def incoming(self, reader: str) -> Float[Tensor, "..."]:
        """The sum of the edges into a node, by the node's axes."""
        reader = self.aliases.get(reader, reader)
        parts = [
            self.edges.score((a, reader)).flatten(0, n - 1)
            if (n := len(self.axes[a]))
            else self.edges.score((a, reader))[None]
            for a in self.into(reader)
        ]
        if not parts:
            raise KeyError(f"no edge leads to {reader!r}.")
        return torch.cat(parts).sum(0)

    def frame(self, *, zeros: bool = False) -> pd.DataFrame:
        """One row an edge: writer, its part, reader, its part, score, sem. Exact zeros only if asked for."""
        rows = []
        for writer, reader in self.edges.by_doc:
            n = len(self.axes[writer])
            score, sem = self.edges.score((writer, reader)), self.edges.sem((writer, reader))
            rows += [
                (writer, at[:n], reader, at[n:], a, b) for at, a, b in entries(score, sem) if zeros or a != 0
            ]
        return pd.DataFrame(rows, columns=["writer", "writer_at", "reader", "reader_at", "score", "sem"])

    def top(self, k: int = 10) -> pd.DataFrame:
        """The k edges with the largest scores, of either sign."""
        return largest(self.frame(), k)


def add_rows(
    by_doc: dict[Any, Tensor],
    key: Any,
    scores: Float[Tensor, "row ..."],
    rows: Rows,
    weights: Float[Tensor, " point"],
    docs: int,
) -> None:
    """Add the rows' scores to their documents', each times the weight of its point on the path."""
    weight = weights.to(scores)[rows.point].view(-1, *[1] * (scores.ndim - 1))
    if key not in by_doc:
        by_doc[key] = scores.new_zeros(docs, *scores.shape[1:])
    by_doc[key].index_add_(0, rows.doc, scores * weight)


def entries(score: Tensor, sem: Tensor) -> Iterator[tuple[tuple[int, ...], float, float]]:
    places = itertools.product(*map(range, score.shape))
    yield from zip(places, score.flatten().tolist(), sem.flatten().tolist(), strict=True)


def largest(frame: pd.DataFrame, k: int) -> pd.DataFrame:
    order = frame["score"].abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order[:k]].reset_index(drop=True)
