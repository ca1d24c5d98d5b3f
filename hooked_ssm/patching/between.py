"""Whether a hook lies between the inputs and the metric.

A sweep over one that does not would give the unpatched number in every cell. So a hook whose cells all end as
the base run does is looked at again: are the logits others if all that it carries is shaken (the metric may
not be differentiable, and a gradient of 0 times something is no dependence), and is what it carries another
with other tokens? Neither is asked of hooks that have been seen to change anything.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

DOCS = 4  # documents that are run to find out
TRIES = 10  # hooks near a wrong one that are looked at
OUTSIDE = "does not lie between the inputs and the metric"


def check_between(base: Any, name: str, clean: Shaped[Tensor, "..."] | None = None) -> None:
    """Raises ValueError for a hook of a `BaseRun` that no logit depends on, or that depends on no token.

    clean: what it is to be replaced by. Where that is not what the base run has there, as filters of another
    model or zeros are not, what it depends on does not matter, nor where there is none.
    """
    if name in base.moved:
        return
    if not reaches(base, name):
        raise ValueError(
            f"{name!r} {OUTSIDE}: it fires, but the logits are the same whatever it is set to. "
            f"{_near(base, name)}"
        )
    if clean is not None and not reads_tokens(base, name):
        current = base.activations([name])[name]
        if torch.equal(clean.to(current), current):
            raise ValueError(
                f"{name!r} {OUTSIDE}: it is the same whatever the tokens, and the clean cache has nothing to "
                "put back. (Put other values, such as zeros, into the cache to see what it does, or leave "
                f"its layer out.) {_near(base, name)}"
            )
    base.moved.add(name)


def reaches(base: Any, name: str) -> bool:
    """Whether logits that are wanted depend on the hook."""
    docs = base.slots.any(1).nonzero()[:DOCS, 0]
    ends = [
        base.run(name, lambda activation, hook, change=change: change(activation), docs, 0, base.slots[docs])
        for change in (torch.clone, shaken)
    ]
    return not torch.equal(*ends)


def shaken(activation: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Every finite entry moved by about the size of all; of integers, the entries in another order."""
    generator = torch.Generator().manual_seed(0)
    if not (activation.is_floating_point() or activation.is_complex()):
        order = torch.randperm(activation.numel(), generator=generator)
        return activation.flatten()[order.to(activation.device)].view_as(activation)
    finite = activation.isfinite()
    size = 1 + activation[finite].abs().mean()
    noise = torch.randn(activation.shape, generator=generator).to(activation)
    return torch.where(finite, activation + size * noise, activation)


def reads_tokens(base: Any, name: str) -> bool:
    """Whether the hook carries something else with the tokens in another order."""
    tokens = base.tokens[:DOCS]
    order = torch.randperm(tokens.numel(), generator=torch.Generator().manual_seed(0))
    other = tokens.flatten()[order.to(tokens.device)].view_as(tokens)
    if torch.equal(tokens, other):  # nothing to tell by
        return True
    seen: list[Tensor] = []

    def keep(activation: Tensor, hook: Any) -> None:
        seen.append(activation.detach().clone())

    for each in (tokens, other):
        base.model.run_with_hooks(each, fwd_hooks=[(name, keep)])
    return not torch.equal(*seen)


def _near(base: Any, name: str) -> str:
    """The hooks that fire next to this one and do lie between the inputs and the metric."""
    order = firing_order(base.model, base.tokens[:1])
    own = getattr(base.model, "hook_aliases", {}).get(name, name)
    place = order.index(own)
    around = sorted(range(len(order)), key=lambda i: (abs(i - place), i))[1 : TRIES + 1]
    near = (order[i] for i in around if reaches(base, order[i]) and reads_tokens(base, order[i]))
    found = [each for each, _ in zip(near, range(3), strict=False)]
    return f"The nearest hooks that do: {', '.join(map(repr, found))}." if found else "None near it does."


def firing_order(model: Any, tokens: Int[Tensor, "batch pos"]) -> list[str]:
    """The hooks that fire, by their own names, in the order in which they first do."""
    fired: dict[str, None] = {}

    def note(activation: Any, hook: Any, name: str) -> None:
        if isinstance(activation, Tensor):
            fired.setdefault(name)

    aliases = getattr(model, "hook_aliases", {})
    silent = model.unavailable_hooks() if hasattr(model, "unavailable_hooks") else {}
    names = [name for name in model.hook_dict if name not in aliases and name not in silent]
    model.run_with_hooks(tokens, fwd_hooks=[(name, partial(note, name=name)) for name in names])
    return list(fired)


def silent_error(model: Any, tokens: Int[Tensor, "batch pos"], names: Sequence[str]) -> ValueError:
    """For hooks that did not fire: which ones of like names do."""
    near = get_close_matches(names[0], firing_order(model, tokens[:1]), n=3, cutoff=0.4)
    hint = f"; hooks that do: {', '.join(map(repr, near))}" if near else ""
    return ValueError(f"{' and '.join(map(repr, names))} did not fire as the model is set{hint}.")
