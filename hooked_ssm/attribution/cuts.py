"""A run cut at the nodes of a graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hooked_ssm.attribution.hooks import carries_forward, setting
from hooked_ssm.attribution.problem import Hooks


class Cuts:
    """Hooks that cut a run at the nodes.

    before: what came in. after: the leaf that went on, in firing order.
    """

    def __init__(self, model: Any, names: Sequence[str]):
        self.model = model
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}
        carries = {name: carries_forward(model, name) for name in names}
        self.hooks: Hooks = [
            *((conv_of(name), self._from_taps(name)) for name in names if name.endswith(".hook_conv_taps")),
            *((name, self._cut(name, carries[name])) for name in names),
        ]

    def _cut(self, name: str, carries: bool) -> Callable:
        def cut(activation: Tensor, hook: Any) -> Any:
            self.before[name] = activation
            self.after[name] = activation.detach().clone().requires_grad_(torch.is_grad_enabled())
            return setting(self.after[name], carries)

        return cut

    def _from_taps(self, taps: str) -> Callable:
        """The convolution computes its output, and adds what an edit of the taps changes. As a function of
        nodes it is the sum of the taps: so let it be one, of the same value."""

        def conv(activation: Tensor, hook: Any) -> Tensor:
            total = self.after[taps].sum(2)
            return activation.detach() + (total - total.detach())

        return conv


def conv_of(taps: str) -> str:
    return taps.removesuffix("_taps")
