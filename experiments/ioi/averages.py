"""A name put into the recurrent state at one position, as the average over other documents has it.

For a layer's state h at a position p, such as the token after the name, let m_A be its mean over documents in
which A stands there and all other words vary. In a new document with A,

    h_p  becomes  h_p + m_B - m_A

and all later states grow out of that. If the state keeps names linearly, the answer becomes B:

    moved      the change of logit(B) - logit(A), as a share of what B in A's place in the text changes it by
    switched   the share of the documents whose logit of B then is above that of A
    before     the same share without the edit
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from experiments.ioi.prompts import Prompts, Words, draw
from experiments.ioi.sweeps import difference, layers_with, logit_difference, progress

STATE = "hook_ssm_state"
Means = dict[tuple[int, int], dict[int, Tensor]]  # (layer, tokens after the name) -> name's token -> mean


def averages(
    model: Any,
    words: Words,
    asked: Sequence[tuple[str, str]],
    *,
    docs: int,
    names: int,
    averaged: int,
    offsets: Sequence[int] = (0, 1, 2, 3),
    seed: int = 0,
) -> pd.DataFrame:
    """By layer and tokens after the name: moved, switched and before.

    asked: templates with their patterns. docs: new documents of each. names: how many are averaged, over
    `averaged` documents each. Raises ValueError if there are not so many names.
    """
    if not 2 <= names <= len(words.names):
        raise ValueError(f"names to average must be from 2 to the {len(words.names)} there are, got {names}.")
    chosen, layers = list(words.names)[:names], layers_with(model, STATE)
    found: dict[tuple[int, int], list[Tensor]] = {}
    for number, (template, pattern) in enumerate(progress(asked, "average states")):
        generator = torch.Generator().manual_seed(seed + 1000 + number)

        def some(count: int, answers: Sequence[str]) -> Prompts:
            return draw(model, words, template, pattern, count, generator, answers=answers)  # noqa: B023

        means: Means = {(layer, after): {} for layer in layers for after in offsets}
        for name in chosen:
            rest = [other for other in words.names if other != name]
            documents = some(averaged, [name, *rest[:1]])
            held_by_name(model, documents, words.names[name], means)
        prompts = some(docs, chosen)
        clean, corrupted = (
            logit_difference(model, prompts, tokens) for tokens in (prompts.clean, prompts.corrupted)
        )
        for (layer, after), by_name in means.items():
            at = prompts.places["answer"] + after
            if at <= prompts.end:
                edited = with_other_name(model, prompts, layer, at, by_name)
                found.setdefault((layer, after), []).append(torch.stack([clean, corrupted, edited]).cpu())
    rows = []
    for (layer, after), parts in found.items():
        clean, corrupted, edited = torch.cat(parts, dim=1).double()
        moved = (clean - edited).mean() / (clean - corrupted).mean()
        switched, before = (float((each < 0).double().mean()) for each in (edited, clean))
        rows.append((layer, after, float(moved), switched, before, len(clean)))
    return pd.DataFrame(rows, columns=["layer", "after", "moved", "switched", "before", "docs"])


@torch.no_grad()
def held_by_name(model: Any, prompts: Prompts, name: int, means: Means) -> None:
    """Put the mean states of the documents with this answer into `means`."""
    tokens = torch.cat([prompts.clean[prompts.answer == name], prompts.corrupted[prompts.other == name]])
    start = prompts.places["answer"]

    def keep(states: Tensor, hook: Any, layer: int) -> None:
        for (of, after), by_name in means.items():
            if of == layer and start + after <= prompts.end:
                by_name[name] = states[:, start + after].mean(0)

    layers = dict.fromkeys(layer for layer, _ in means)
    hooks = [(f"blocks.{n}.mixer.{STATE}", lambda states, hook, n=n: keep(states, hook, n)) for n in layers]
    model.run_with_hooks(tokens, fwd_hooks=hooks, return_type=None)


@torch.no_grad()
def with_other_name(model: Any, prompts: Prompts, layer: int, at: int, means: dict[int, Tensor]) -> Tensor:
    """The clean documents' logit differences with the other name's mean in place of the answer's."""
    change = torch.stack(
        [means[b] - means[a] for a, b in zip(prompts.answer.tolist(), prompts.other.tolist(), strict=True)]
    )

    def add(states: Tensor, hook: Any) -> Tensor:
        edited = states.clone()
        edited[:, at] += change.to(states)
        return edited

    last = torch.full((len(prompts.clean),), prompts.end, device=prompts.clean.device)
    logits = model.run_with_hooks(
        prompts.clean, fwd_hooks=[(f"blocks.{layer}.mixer.{STATE}", add)], logit_positions=last
    )
    return difference(prompts, logits)
