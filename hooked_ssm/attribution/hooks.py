"""Hooks by name, and what is attached to them: a look at the graph, or a cut through it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_ssm.ops.state_edit import StateEdit
from hooked_ssm.patching.names import hook_names, why_silent

HookFilter = str | Sequence[str] | Callable[[str], bool] | None


def resolve(model: Any, hooks: HookFilter) -> list[str]:
    """The hooks' own names, in the order of `model.hook_dict`.

    hooks: full names, aliases, or names as patching takes them ("conv", "z", "mixer.hook_y": in every layer
        that has it); a filter of full names; None for all that can fire.

    Raises KeyError with the nearest names for unknown ones and ValueError for hooks that cannot fire.
    """
    aliases = aliases_of(model)
    if hooks is None or callable(hooks):
        unavailable = model.unavailable_hooks() if hasattr(model, "unavailable_hooks") else {}
        names: list[str] = list(model.hook_dict)
        wanted = {aliases.get(name, name) for name in names if hooks is None or hooks(name)}
        found = [name for name in names if name in wanted and name not in unavailable]
        if not found:
            raise ValueError("the filter matches no hook that can fire.")
        return found
    asked: set[str] = set()
    for name in [hooks] if isinstance(hooks, str) else hooks:
        if name in model.hook_dict or name.startswith(("blocks.", "hook_", "ln_final.")):
            reason = why_silent(model, name)
            if reason is not None:
                raise reason
            of_layers: Iterable[str] = [name]
        else:
            of_layers = hook_names(model, name, list(range(model.cfg.n_layers))).values()
        asked.update(aliases.get(each, each) for each in of_layers)
    if not asked:
        raise ValueError("at least one hook is wanted, got none.")
    return [name for name in model.hook_dict if name in asked]


def aliases_of(model: Any) -> dict[str, str]:
    """Other names of hooks, each with the hook's own. (A bridge has its hooks under all their names.)"""
    return dict(model.hook_aliases) if hasattr(model, "canonical_name") else {}


def carries_forward(model: Any, name: str) -> bool:
    """Whether an entry of this hook is computed from its earlier ones, as states are: an edit is then carried
    forward to the later ones, unless they are set too."""
    return "carried forward" in getattr(model.hook_dict[name], "meaning", "")


def setting(values: Tensor, carries: bool) -> Any:
    """What a hook returns to set everything to `values`."""
    if carries:
        return StateEdit(values, torch.ones((), dtype=torch.bool, device=values.device))
    return values


def watch(names: Sequence[str], tensors: dict[str, Tensor], direct: set[str]) -> list[tuple[str, Callable]]:
    """Hooks that put into `tensors` what the run computes with, as part of its graph.

    direct: of these hooks every entry is set to what it is: the gradient at an entry is then of what reads
        it, and not through later entries of the same hook.
    """

    def look(activation: Tensor, hook: Any, name: str) -> Any:
        if torch.is_grad_enabled() and not activation.requires_grad:  # the weights before it are frozen
            activation = activation.detach().requires_grad_()
        if name in direct:
            activation = activation.clone()
        tensors[name] = activation
        # TransformerLens's bridges hand out views that they compute with only if they get them back.
        return setting(activation, name in direct)

    return [(name, _named(look, name)) for name in names]


def keep(names: Sequence[str], into: dict[str, Tensor]) -> list[tuple[str, Callable]]:
    """Hooks that put copies of activations into a dictionary."""

    def save(activation: Tensor, hook: Any, name: str) -> None:
        into[name] = activation.detach().clone()

    return [(name, _named(save, name)) for name in names]


def _named(function: Callable, name: str) -> Callable:
    return lambda activation, hook: function(activation, hook, name)


def check_fired(names: Iterable[str], fired: Iterable[str]) -> None:
    silent = sorted(set(names) - set(fired))
    if silent:
        raise ValueError(f"{' and '.join(map(repr, silent))} did not fire as the model is set.")


def gradients_at(
    tensors: dict[str, Tensor], final: Float[Tensor, "slot d"], by_final: Tensor
) -> dict[str, Tensor]:
    """The metric's gradients at these tensors. Raises ValueError for those that it does not depend on."""
    found: Sequence[Tensor | None] = [None] * len(tensors)
    if final.requires_grad:
        found = torch.autograd.grad(final, list(tensors.values()), by_final, allow_unused=True)
    unused = [name for name, gradient in zip(tensors, found, strict=True) if gradient is None]
    if unused:
        raise ValueError(
            f"{' and '.join(map(repr, unused))} does not lie between the inputs and the metric: "
            "the metric has no gradient there."
        )
    return {name: gradient for name, gradient in zip(tensors, found, strict=True) if gradient is not None}


def difference(clean: Tensor, corrupted: Tensor) -> Tensor:
    """clean - corrupted, and 0 where they are the same infinity (attention scores above the diagonal)."""
    return torch.where(clean == corrupted, 0.0, clean - corrupted)
