"""Metrics of the logits of one cell, and their values in all cells of a sweep."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.patching import PatchingResult

from hooked_ssm.patching.lazy_logits import LazyLogits

Metric = Callable[[Tensor], Any]
REDUCTIONS = ("scalar", "mean", "none")


class Metrics:
    """One metric or several by name, each evaluated on the logits of all documents of one cell.

    reduce: "scalar" (a metric gives a number), or "mean" or "none" (it gives one a document, [doc]).
    """

    def __init__(self, metrics: Metric | Mapping[str, Metric], reduce: str, docs: int):
        self.named = isinstance(metrics, Mapping)
        self.metrics = dict(metrics) if isinstance(metrics, Mapping) else {"metric": metrics}
        if not self.metrics:
            raise ValueError("at least one metric is wanted, got an empty mapping.")
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce must be one of {REDUCTIONS}, got {reduce!r}.")
        not_callable = [name for name, metric in self.metrics.items() if not callable(metric)]
        if not_callable:
            raise TypeError(f"a metric must be a function of logits; {not_callable} cannot be called.")
        self.reduce, self.docs = reduce, docs

    def __call__(self, logits: LazyLogits) -> Tensor:
        """[metric], or [metric, doc]."""
        return torch.stack([self._value(name, metric, logits) for name, metric in self.metrics.items()])

    def _value(self, name: str, metric: Metric, logits: LazyLogits) -> Tensor:
        logits.was_read = False
        value = torch.as_tensor(metric(logits)).detach()
        if not logits.was_read:
            raise ValueError(
                f"{name!r} does not read the logits that it is given, so that no patch can change it: a "
                "metric is a function of its argument."
            )
        wanted = () if self.reduce == "scalar" else (self.docs,)
        if value.shape == wanted:
            return value.to(logits.dtype if not value.is_floating_point() else value.dtype)
        what = "a scalar" if self.reduce == "scalar" else f"one value a document, [{self.docs}],"
        hint = "; reduce='mean' and 'none' take one value a document" if self.reduce == "scalar" else ""
        raise ValueError(
            f"{name!r} must return {what} with reduce={self.reduce!r}, got shape {list(value.shape)}{hint}."
        )


def result(
    metrics: Metrics, values: Tensor, frame: pd.DataFrame, axes: list[str], baseline: Tensor | None
) -> Tensor | PatchingResult:
    """A tensor of values [metric, *cells, doc?], or where TransformerLens gives one its `PatchingResult`."""
    if metrics.reduce == "mean":
        values = values.mean(-1)
        baseline = None if baseline is None else baseline.mean(-1)
    if not metrics.named and metrics.reduce != "none" and baseline is None:
        return values[0]
    return PatchingResult(
        values=values if metrics.named else values[0],
        axis_names=axes,
        index_df=frame,
        metric_names=list(metrics.metrics),
        reduced=metrics.reduce != "none",
        baseline=baseline if metrics.named or baseline is None else baseline[0],
        has_metric_axis=metrics.named,
    )
