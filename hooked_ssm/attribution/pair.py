"""The clean and the corrupted run of some documents: activations at hooks, and the metric."""

import torch
from jaxtyping import Int
from torch import Tensor

from hooked_ssm.attribution.hooks import check_fired, difference, keep
from hooked_ssm.attribution.problem import Problem, Run


class Pair:
    """start: the corrupted activations of the documents last asked for. apart: clean - corrupted."""

    def __init__(self, problem: Problem, names: list[str]):
        self.problem, self.names = problem, names
        self.start: dict[str, Tensor] = {}
        self.apart: dict[str, Tensor] = {}
        self.docs: list[int] = []
        self.final: dict[str, dict[tuple[int, ...], Tensor]] = {"clean": {}, "corrupted": {}}

    def difference(
        self, docs: Int[Tensor, " doc"], done_of: str = "", done: Run | None = None
    ) -> dict[str, Tensor]:
        """clean - corrupted at the hooks. `done`, if there is one, is a run of the documents `done_of`."""
        if self.docs != docs.tolist():
            clean, corrupted = (
                self._activations(which, docs, done if which == done_of else None)
                for which in ("clean", "corrupted")
            )
            self.start, self.docs = corrupted, docs.tolist()
            self.apart = {name: difference(clean[name], corrupted[name]) for name in self.names}
        return self.apart

    @torch.no_grad()
    def _activations(self, which: str, docs: Int[Tensor, " doc"], done: Run | None) -> dict[str, Tensor]:
        into: dict[str, Tensor] = {}
        if done is not None:
            into, final = {name: tensor.detach() for name, tensor in done.tensors.items()}, done.final
        else:
            tokens = self.problem.clean if which == "clean" else self.problem.corrupted
            final = self.problem.final(tokens[docs], docs, keep(self.names, into))
        check_fired(self.names, into)
        self.final[which][tuple(docs.tolist())] = final.detach()
        return into

    @torch.no_grad()
    def metrics(self) -> tuple[Tensor, Tensor]:
        """The metric of the clean and of the corrupted run, of all documents."""
        clean, corrupted = (
            self.problem.measure(torch.cat(list(parts.values()))).detach() for parts in self.final.values()
        )
        return clean, corrupted
