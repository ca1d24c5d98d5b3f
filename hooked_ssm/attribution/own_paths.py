"""Gradients at a node, averaged while it alone goes from corrupted to clean."""

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_ssm.attribution.hooks import gradients_at
from hooked_ssm.attribution.nodes import own_path, path_points
from hooked_ssm.attribution.pair import Pair
from hooked_ssm.attribution.problem import Problem


class OwnPaths:
    """Gradients [doc, ...] averaged over a node's own way from corrupted to clean, all else corrupted."""

    def __init__(self, problem: Problem, names: list[str], steps: int, batch_size: int | None):
        self.problem, self.batch_size = problem, batch_size
        self.points, self.weights = path_points(steps)
        self.pair = Pair(problem, names)
        self.pair.difference(torch.arange(problem.docs, device=problem.clean.device))
        self.known: dict[str, Tensor] = {}

    def gradient(self, name: str) -> Float[Tensor, "doc ..."]:
        if name not in self.known:
            self.known[name] = self._mean(name, [])
        return self.known[name]

    def direct(self, name: str, order: list[str]) -> Float[Tensor, "doc ..."]:
        """By no other node: of what the logits read of it themselves."""
        after = order[order.index(name) + 1 :]
        return self._mean(name, after) if after else self.gradient(name)

    def _mean(self, name: str, frozen: list[str]) -> Float[Tensor, "doc ..."]:
        run = own_path(self.problem, name, self.pair, self.points, frozen)
        mean = torch.zeros_like(self.pair.start[name])
        for rows, done, by_final in self.problem.runs(run, len(self.points), self.batch_size):
            gradient = gradients_at(done.tensors, done.final, by_final)[name]
            weight = self.weights.to(mean)[rows.point].view(-1, *[1] * (mean.ndim - 1))
            mean.index_add_(0, rows.doc, weight * gradient)
        return mean
