"""Interchange interventions: which activation, at which position, carries what the corruption destroyed?

The base run reads a corrupted document, the source run the clean one. One activation of the base, at one
named position, is replaced by the source's, and the answer's probability is read:

    Attrib = mean_docs(p_patched - p_corrupted) / mean_docs(p_clean - p_corrupted)

1 means that this activation alone restores the clean prediction, 0 that it does nothing. A ratio of means,
as in the paper (arXiv:2505.15105); it can leave [0, 1], and means little where its denominator is small.

Works on any causal TransformerLens `HookedRootModule` or bridge, at hooks that are [batch, pos, ...]. Models
that can start at a layer and unembed chosen positions, as `HookedSSM` can, run only what an intervention
changes, see `hooked_ssm.patching`.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_ssm.patching.base_run import BaseRun
from hooked_ssm.patching.between import check_between, silent_error
from hooked_ssm.patching.rows import Cell, Patch


@dataclass(frozen=True, eq=False)
class Interchange:
    """What `interchange` measured, for every document. Probabilities and logits are the answer's.

    p_clean, p_corrupted [doc], p_patched [hook, position, doc]; logit_* likewise.
    """

    hooks: list[str]
    positions: list[str]
    p_clean: Float[Tensor, " doc"]
    p_corrupted: Float[Tensor, " doc"]
    p_patched: Float[Tensor, "hook position doc"]
    logit_clean: Float[Tensor, " doc"]
    logit_corrupted: Float[Tensor, " doc"]
    logit_patched: Float[Tensor, "hook position doc"]

    @property
    def prob_diff(self) -> Float[Tensor, "hook position doc"]:
        """p_patched - p_corrupted."""
        return self.p_patched - self.p_corrupted

    @property
    def gap(self) -> float:
        """Attrib's denominator: the probability that the corruption costs."""
        return float((self.p_clean - self.p_corrupted).mean())

    def attrib(self) -> Float[Tensor, "hook position"]:
        """Attrib of every hook at every position."""
        return self.prob_diff.mean(-1) / self.gap

    def select(self, docs: Bool[Tensor, " doc"] | Int[Tensor, " some"]) -> "Interchange":
        """The same for some of the documents."""
        per_doc = (tensor[..., docs] for tensor in vars(self).values() if isinstance(tensor, Tensor))
        return Interchange(self.hooks, self.positions, *per_doc)

    def interval(
        self, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> tuple[Float[Tensor, "hook position"], Float[Tensor, "hook position"]]:
        """Low and high end of Attrib's bootstrap interval, over documents (percentiles)."""
        if not 0 < confidence < 1 or resamples < 1:
            raise ValueError(
                f"confidence must be in (0, 1) and resamples at least 1, got {confidence} and {resamples}."
            )
        n = len(self.p_clean)
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
        counts = torch.from_numpy(draws).to(self.prob_diff)  # [resample, doc]
        ratios = (self.prob_diff @ counts.T) / ((self.p_clean - self.p_corrupted) @ counts.T)
        tails = ratios.new_tensor([(1 - confidence) / 2, (1 + confidence) / 2])
        low, high = ratios.quantile(tails, dim=-1)
        return low, high

    def table(self) -> pd.DataFrame:
        """One row a hook and position: attrib, low, high, restored (mean p_patched), prob_diff."""
        low, high = self.interval()
        columns = {
            "attrib": self.attrib(),
            "low": low,
            "high": high,
            "restored": self.p_patched.mean(-1),
            "prob_diff": self.prob_diff.mean(-1),
        }
        index = pd.MultiIndex.from_product([self.hooks, self.positions], names=["hook", "position"])
        frame = pd.DataFrame({name: t.flatten().tolist() for name, t in columns.items()}, index=index)
        return frame.reset_index()


@torch.no_grad()
def interchange(
    model: Any,
    clean: Int[Tensor, "doc pos"],
    corrupted: Int[Tensor, "doc pos"],
    *,
    answer: Int[Tensor, " doc"],
    answer_pos: Int[Tensor, " doc"],
    hooks: Sequence[str],
    positions: Mapping[str, Int[Tensor, " doc"] | Bool[Tensor, "doc pos"]],
    batch_size: int = 128,
) -> Interchange:
    """Replace each hook's activation at each named position of the corrupted run by the clean run's.

    answer, answer_pos: the token whose probability is read, and where it is predicted.
    positions: for each name one position a document, or a mask of several that are replaced together.
    batch_size: documents at a time.

    Raises ValueError for documents of different shapes, positions or answers that do not fit them, and hooks
    that have no position axis in second place, do not fire, or do not lie between the inputs and the answer's
    logit (see `patching.patch_sweep`); KeyError for unknown hooks.
    """
    check_documents(clean, corrupted, answer, answer_pos)
    check_known_hooks(model, hooks)
    if not hooks or not positions or batch_size < 1:
        raise ValueError(
            f"at least one hook, one position and a batch_size of 1 are wanted, got {len(hooks)} hooks, "
            f"{len(positions)} positions and batch_size {batch_size}."
        )
    masks = torch.stack([as_mask(name, where, clean.shape) for name, where in positions.items()])
    parts, moved = [], set[str]()
    for start in range(0, len(clean), batch_size):
        rows = slice(start, start + batch_size)
        length = int(answer_pos[rows].max()) + 1  # a causal model reads nothing after that
        batch = _Batch(model, answer[rows], answer_pos[rows], moved)
        inputs = clean[rows, :length], corrupted[rows, :length]
        parts.append(batch.run(*inputs, list(hooks), masks[:, rows, :length]))
    results = [torch.cat(tensors, dim=-1) for tensors in zip(*parts, strict=True)]
    return Interchange(list(hooks), list(positions), *results)


class _Batch:
    """The interchange of a few documents. moved: hooks that were seen to do something in others."""

    def __init__(self, model: Any, answer: Tensor, answer_pos: Tensor, moved: set[str]):
        self.model, self.answer, self.answer_pos, self.moved = model, answer, answer_pos, moved

    def run(self, clean: Tensor, corrupted: Tensor, hooks: list[str], masks: Tensor) -> tuple[Tensor, ...]:
        """p_clean, p_corrupted, p_patched, and the same for logits."""
        slots = torch.arange(clean.shape[1], device=clean.device) == self.answer_pos[:, None]
        wanted: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: Any, name: str) -> None:
            check_positions_second(name, hook, activation, clean.shape)
            wanted[name] = activation.clone()

        p_clean, logit_clean = self.clean(clean, [(name, partial(keep, name=name)) for name in hooks])
        silent = [name for name in hooks if name not in wanted]
        if silent:
            raise silent_error(self.model, clean, silent)
        base = BaseRun(self.model, corrupted, slots)
        base.moved = self.moved
        p_corrupted, logit_corrupted = self.read(base.unembed(base.final), self.answer)
        p_patched, logit_patched = (
            each.repeat(len(hooks), len(masks), 1) for each in (p_corrupted, logit_corrupted)
        )
        current: dict[str, Tensor] = {}
        for number, name in enumerate(hooks):
            if name not in current:  # one layer at a time
                layer = base.start_layer(name)
                current = base.activations([other for other in hooks if base.start_layer(other) == layer])
            value = wanted[name]
            parts = (slice(None),) * (value.ndim - 2)
            cells = [Cell(mask, parts) for mask in masks]
            for some in Patch(base, name, value, cells, current=current[name]).run():
                cell, doc = some.cell, some.slot  # one slot a document
                p_patched[number, cell, doc], logit_patched[number, cell, doc] = self.read(
                    base.unembed(some.final), self.answer[doc]
                )
            check_between(base, name, value)
        return p_clean, p_corrupted, p_patched, logit_clean, logit_corrupted, logit_patched

    def clean(self, tokens: Tensor, fwd_hooks: list[Any]) -> tuple[Tensor, Tensor]:
        """The answer's probability and logit, run with hooks."""
        if "logit_positions" in inspect.signature(self.model.forward).parameters:
            logits = self.model.run_with_hooks(tokens, fwd_hooks=fwd_hooks, logit_positions=self.answer_pos)
        else:
            logits = self.model.run_with_hooks(tokens, fwd_hooks=fwd_hooks)
            logits = logits[torch.arange(len(logits)), self.answer_pos]
        return self.read(logits, self.answer)

    def read(
        self, logits: Float[Tensor, "row d_vocab"], answer: Int[Tensor, " row"]
    ) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """The answer's probability and logit."""
        low, high = int(self.answer.min()), int(self.answer.max())
        if low < 0 or high >= logits.shape[-1]:
            raise ValueError(f"answers must lie in 0..{logits.shape[-1] - 1}, got {low}..{high}.")
        at_answer = logits.gather(-1, answer[:, None])[:, 0]
        return (at_answer - logits.logsumexp(-1)).exp(), at_answer


def as_mask(
    name: str, where: Int[Tensor, " doc"] | Bool[Tensor, "doc pos"], shape: torch.Size
) -> Bool[Tensor, "doc pos"]:
    """The named position of every document as a mask. Raises ValueError if it is out of range."""
    docs, length = shape
    if where.dtype == torch.bool:
        if where.shape != shape:
            raise ValueError(
                f"mask {name!r} must have the documents' shape {list(shape)}, got {list(where.shape)}."
            )
        return where
    check_one_a_document(name, where, docs, length)
    return torch.arange(length, device=where.device) == where[:, None]


def check_one_a_document(name: str, where: Tensor, docs: int, length: int) -> None:
    if where.shape != (docs,):
        raise ValueError(f"positions {name!r} must be one a document, [{docs}], got {list(where.shape)}.")
    low, high = int(where.min()), int(where.max())
    if low < 0 or high >= length:
        raise ValueError(f"positions {name!r} must lie in 0..{length - 1}, got {low}..{high}.")


def check_documents(clean: Tensor, corrupted: Tensor, answer: Tensor, answer_pos: Tensor) -> None:
    if clean.shape != corrupted.shape:
        raise ValueError(
            "clean and corrupted documents must have one shape, got "
            f"{list(clean.shape)} and {list(corrupted.shape)}."
        )
    if clean.ndim != 2 or 0 in clean.shape:
        raise ValueError(
            f"documents must be [doc, pos] with at least one of each, got shape {list(clean.shape)}."
        )
    check_one_a_document("answer_pos", answer_pos, *clean.shape)
    if answer.shape != answer_pos.shape:
        raise ValueError(f"answer must be one a document, [{len(clean)}], got {list(answer.shape)}.")


def check_known_hooks(model: Any, names: Sequence[str]) -> None:
    for name in names:
        if name not in model.hook_dict:
            near = get_close_matches(name, model.hook_dict, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "model.hook_dict has all."
            raise KeyError(f"no hook named {name!r}; {hint}")


def check_positions_second(name: str, hook: Any, activation: Tensor, shape: torch.Size) -> None:
    if getattr(hook, "pos_dim", None) not in (None, 1) or activation.shape[:2] != shape:
        raise ValueError(
            f"{name!r} has no position axis in second place (its shape is {list(activation.shape)} for "
            f"documents {list(shape)}), so that it cannot be replaced at a position."
        )
