"""Hooks of any shape for tools that want [batch, pos, d]: TransformerLens's interchange on subspaces, DAS.

    view = Flattened(model)
    source = collect_activations(view, "blocks.1.hook_ssm_state", clean, task_logits, positions=where)
    fit_das(view, "blocks.0.hook_z", base, source, targets, task_logits, rank=2, ...)

with `task_logits` a function of tokens that runs the model itself.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn


class Flattened(nn.Module):
    """A model whose hooks hand out, and take back, activations with all axes after the position as one.

    The model itself is inside, with its own weights: hooks attached through the view act on the model.
    A vector set at a state is carried forward, as any edit of it.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    @contextmanager
    def hooks(self, fwd_hooks: Sequence[tuple[Any, Callable]] = (), **options: Any) -> Iterator["Flattened"]:
        """As the model's `hooks`, each function called with [batch, pos, d].

        Raises ValueError when a hook fires whose second axis is not positions, as attention patterns'.
        """
        wrapped = [(name, partial(flat_hook, function=function)) for name, function in fwd_hooks]
        with self.model.hooks(fwd_hooks=wrapped, **options):
            yield self


def flat_hook(activation: Tensor, hook: Any, function: Callable) -> Tensor | None:
    if getattr(hook, "pos_dim", 1) != 1 or activation.ndim < 3:
        raise ValueError(
            f"{hook.name!r} is not [batch, pos, ...] (its shape is {list(activation.shape)}): it has no "
            "vector at a position."
        )
    result = function(activation.flatten(2), hook=hook)
    return None if result is None else result.reshape(activation.shape)
