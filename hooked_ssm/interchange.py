"""Interchange interventions: which activation, at which position, carries what the corruption destroyed?

The base run reads a corrupted document, the source run the clean one. One activation of the base, at one
named position, is replaced by the source's, and the answer's probability is read:

    Attrib = mean_docs(p_patched - p_corrupted) / mean_docs(p_clean - p_corrupted)

1 means that this activation alone restores the clean prediction, 0 that it does nothing. A ratio of means,
as in the paper (arXiv:2505.15105); it can leave [0, 1], and means little where its denominator is small.

Works on any causal TransformerLens `HookedRootModule` or bridge, at hooks that are [batch, pos, ...]. Models
that can start at a layer and unembed chosen positions, as `HookedSSM` can, run only what an intervention
changes.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
    batch_size: int = 32,
) -> Interchange:
    """Replace each hook's activation at each named position of the corrupted run by the clean run's.

    answer, answer_pos: the token whose probability is read, and where it is predicted.
    positions: for each name one position a document, or a mask of several that are replaced together.
    batch_size: documents at a time; all positions of a hook run as one batch of batch_size * len(positions).

    Raises ValueError for documents of different shapes, positions or answers that do not fit them, and hooks
    that have no position axis in second place or do not fire; KeyError for unknown hooks.
    """
    check_documents(clean, corrupted, answer, answer_pos)
    check_known_hooks(model, hooks)
    if not hooks or not positions or batch_size < 1:
        raise ValueError(
            f"at least one hook, one position and a batch_size of 1 are wanted, got {len(hooks)} hooks, "
            f"{len(positions)} positions and batch_size {batch_size}."
        )
    masks = torch.stack([as_mask(name, where, clean.shape) for name, where in positions.items()])
    parts = []
    for start in range(0, len(clean), batch_size):
        rows = slice(start, start + batch_size)
        length = int(answer_pos[rows].max()) + 1  # a causal model reads nothing after that
        batch = _Batch(model, answer[rows], answer_pos[rows])
        inputs = clean[rows, :length], corrupted[rows, :length]
        parts.append(batch.run(*inputs, list(hooks), masks[:, rows, :length]))
    results = [torch.cat(tensors, dim=-1) for tensors in zip(*parts, strict=True)]
    return Interchange(list(hooks), list(positions), *results)


class _Batch:
    """The interchange of a few documents."""

    def __init__(self, model: Any, answer: Tensor, answer_pos: Tensor):
        self.model, self.answer, self.answer_pos = model, answer, answer_pos
        accepted = inspect.signature(model.forward).parameters
        self.can_choose_logits = "logit_positions" in accepted
        # TransformerLens 4.3's bridges take start_at_layer too, but run every layer, the Mamba bridge all of
        # them on the given residual stream: its logits are then wrong.
        self.can_start_late = self.can_choose_logits and "start_at_layer" in accepted

    def run(self, clean: Tensor, corrupted: Tensor, hooks: list[str], masks: Tensor) -> tuple[Tensor, ...]:
        """p_clean, p_corrupted, p_patched, and the same for logits."""
        wanted: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: Any, name: str) -> None:
            check_positions_second(name, hook, activation, clean.shape)
            wanted[name] = activation.clone()

        p_clean, logit_clean = self.read(clean, [(name, _with_name(keep, name)) for name in hooks])
        check_fired(hooks, wanted)
        resid: dict[str, Tensor] = {}

        def keep_resid(activation: Tensor, hook: Any, name: str) -> None:
            resid[name] = activation.clone()

        layers = [layer for name in hooks if (layer := layer_of(name)) is not None]
        starts = [f"blocks.{layer}.hook_resid_pre" for layer in dict.fromkeys(layers) if self.can_start_late]
        p_corrupted, logit_corrupted = self.read(corrupted, [(n, _with_name(keep_resid, n)) for n in starts])

        p_patched, logit_patched = [], []
        for name in hooks:
            p, logit = self.patched(name, wanted[name], corrupted, resid, masks)
            p_patched.append(p)
            logit_patched.append(logit)
        return (
            p_clean,
            p_corrupted,
            torch.stack(p_patched),
            logit_clean,
            logit_corrupted,
            torch.stack(logit_patched),
        )

    def patched(
        self, name: str, clean_value: Tensor, corrupted: Tensor, resid: dict[str, Tensor], masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Probability and logit [position, doc] with one hook replaced, all positions in one batch."""
        cells = len(masks)

        def replace(activation: Tensor, hook: Any) -> Tensor:
            activation = activation.unflatten(0, (cells, -1))
            mask = masks.reshape(*masks.shape, *[1] * (activation.ndim - masks.ndim))
            return torch.where(mask, clean_value, activation).flatten(0, 1)

        layer = layer_of(name)
        start = f"blocks.{layer}.hook_resid_pre"
        if start in resid:
            input, options = resid[start], {"start_at_layer": int(layer or 0)}
        else:
            input, options = corrupted, {}
        copies = input.repeat(cells, *[1] * (input.ndim - 1))
        p, logit = self.read(copies, [(name, replace)], cells, **options)
        return p.unflatten(0, (cells, -1)), logit.unflatten(0, (cells, -1))

    def read(
        self, input: Tensor, fwd_hooks: list[Any], copies: int = 1, **options: Any
    ) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """Probability and logit of the answer, run with hooks."""
        answer, where = self.answer.repeat(copies), self.answer_pos.repeat(copies)
        if self.can_choose_logits:
            options["logit_positions"] = where
        logits = self.model.run_with_hooks(input, fwd_hooks=fwd_hooks, **options)
        low, high = int(answer.min()), int(answer.max())
        if low < 0 or high >= logits.shape[-1]:
            raise ValueError(f"answers must lie in 0..{logits.shape[-1] - 1}, got {low}..{high}.")
        if not self.can_choose_logits:
            logits = logits[torch.arange(len(logits)), where]
        at_answer = logits.gather(-1, answer[:, None])[:, 0]
        return (at_answer - logits.logsumexp(-1)).exp(), at_answer


def _with_name(function: Any, name: str) -> Any:
    return lambda activation, hook: function(activation, hook, name)


def layer_of(name: str) -> str | None:
    """The layer in a hook's name, as it is written there."""
    first, *rest = name.split(".")
    return rest[0] if first == "blocks" and rest else None


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


def check_fired(names: Sequence[str], fired: Mapping[str, Tensor]) -> None:
    silent = [name for name in names if name not in fired]
    if silent:
        raise ValueError(f"{' and '.join(map(repr, silent))} did not fire as the model is set.")


def check_positions_second(name: str, hook: Any, activation: Tensor, shape: torch.Size) -> None:
    if getattr(hook, "pos_dim", None) not in (None, 1) or activation.shape[:2] != shape:
        raise ValueError(
            f"{name!r} has no position axis in second place (its shape is {list(activation.shape)} for "
            f"documents {list(shape)}), so that it cannot be replaced at a position."
        )
