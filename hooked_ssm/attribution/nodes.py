"""Attribution of nodes: of activations at hooks.

    score = (clean - corrupted) . g

summed over all axes but those asked for. g is the metric's gradient at the activation in the corrupted run
(attribution patching: Nanda 2023, arXiv:2310.10348), or its average

    integral_0^1 g(corrupted + a (clean - corrupted)) da

over a path on which the activation itself goes from corrupted to clean, or on which the token embeddings do
(integrated gradients: Sundararajan et al. 2017, arXiv:1703.01365; Hanna et al. 2024, arXiv:2403.17806).
The integral is a Gauss-Legendre sum: with n steps exact for polynomials of degree 2n - 1.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_ssm.attribution.hooks import (
    HookFilter,
    aliases_of,
    carries_forward,
    check_fired,
    gradients_at,
    resolve,
    setting,
    watch,
)
from hooked_ssm.attribution.pair import Pair
from hooked_ssm.attribution.problem import Problem, Rows, Run
from hooked_ssm.attribution.reduce import Parts, over_positions
from hooked_ssm.attribution.result import Attribution, Scores, add_rows
from hooked_ssm.patching.logits import LogitPositions
from hooked_ssm.patching.names import layer_of

EMBED = "hook_embed"


def gradient_attribution(
    model: Any,
    clean_tokens: Int[Tensor, "doc pos"],
    corrupted_tokens: Int[Tensor, "corrupted_doc corrupted_pos"],
    metric: Callable[[Tensor], Any],
    hooks: HookFilter = None,
    axes: Sequence[str] = ("pos",),
    *,
    at: str = "corrupted",
    groups: Mapping[str, int] | None = None,
    read_only: bool = False,
    logit_positions: LogitPositions = None,
    batch_size: int | None = None,
) -> Attribution:
    """(clean - corrupted) . gradient at every hook asked for, in two forwards and one backward.

    metric: of the logits of all documents: one value a document (each of which depends on its own document
        only), and the scores are means over them, or a scalar. See `Scores`.
    hooks: full names, aliases, or names as patching takes them ("conv": in all layers that have it); a filter
        of full names; None for every hook that can fire (states and writes included, which are large).
    axes: what the scores tell apart, of the axes that the hooks declare; see `Parts`.
    at: the run in which the gradient is taken. At the clean one the score estimates what patching the
        corrupted activation into the clean run would take away.
    groups: for some axes, in how many parts of neighbouring entries they are told apart.
    read_only: of states, and of the delta rule's writes, count what reads them at their position, and not
        what is carried on to later ones.
    logit_positions: where the metric reads, as in `patch_sweep`.
    batch_size: documents at a time (with fewer than all of them, every forward is done twice); None for all.

    A state's score at a position is of setting that one and carrying it on, as patching does; without
    positions among the axes, of setting all of them.

    Works under `torch.no_grad()` and with frozen weights. Raises KeyError or ValueError for hooks that do not
    exist, do not fire, or do not lie between the inputs and the metric (asked for by name: as `patch_sweep`
    refuses them too), for metrics that are not one number (or one a document) or have no gradient, for
    documents of different shapes, for models in training mode and for inference mode.
    """
    if at not in ("corrupted", "clean"):
        raise ValueError(f"at must be 'corrupted' or 'clean', got {at!r}.")
    problem = Problem(model, clean_tokens, corrupted_tokens, metric, logit_positions)
    names = resolve(model, hooks)
    summing = Summing(problem, names, axes, groups, read_only=read_only)
    base = problem.corrupted if at == "corrupted" else problem.clean

    def run(rows: Rows) -> Run:
        tensors: dict[str, Tensor] = {}
        final = problem.final(base[rows.doc], rows.doc, watch(names, tensors, summing.direct))
        return Run(final, tensors)

    pair = Pair(problem, names)
    for rows, done, by_final in problem.runs(run, 1, batch_size):
        check_fired(names, done.tensors)
        apart = pair.difference(rows.doc, at, done)
        summing.add(rows, gradients_at(done.tensors, done.final, by_final), torch.ones(1), apart)
    return summing.result(pair, hooks)


def integrated_gradients(
    model: Any,
    clean_tokens: Int[Tensor, "doc pos"],
    corrupted_tokens: Int[Tensor, "corrupted_doc corrupted_pos"],
    metric: Callable[[Tensor], Any],
    hooks: HookFilter,
    axes: Sequence[str] = ("pos",),
    *,
    steps: int = 5,
    path: str = "activations",
    groups: Mapping[str, int] | None = None,
    read_only: bool = False,
    logit_positions: LogitPositions = None,
    batch_size: int | None = None,
) -> Attribution:
    """As `gradient_attribution`, with gradients averaged over `steps` runs between corrupted and clean.

    path: "activations": each hook's own activation goes from corrupted to clean, as a whole, in runs of its
        own that are otherwise corrupted. Its scores then sum to what patching all of it does, up to the
        error of the sum, which falls quickly with `steps`. States are all set on the way: their scores are
        of what reads them. "inputs": the token embeddings go, and all hooks are read in the same runs.
    batch_size: runs (documents times steps) at a time.
    """
    if path not in ("activations", "inputs"):
        raise ValueError(f"path must be 'activations' or 'inputs', got {path!r}.")
    points, weights = path_points(steps)
    problem = Problem(model, clean_tokens, corrupted_tokens, metric, logit_positions)
    names = resolve(model, hooks)
    carrying = {name for name in names if carries_forward(model, name)}
    if path == "activations":
        summing = Summing(problem, names, axes, groups, direct=carrying)
        for name in names:
            pair = Pair(problem, [name])
            apart = pair.difference(torch.arange(problem.docs, device=clean_tokens.device))
            run = own_path(problem, name, pair, points)
            for rows, done, by_final in problem.runs(run, steps, batch_size):
                gradients = gradients_at(done.tensors, done.final, by_final)
                summing.add(rows, gradients, weights, {name: apart[name][rows.doc]})
        return summing.result(pair, hooks)

    summing = Summing(problem, names, axes, groups, read_only=read_only)
    pair, embedding = Pair(problem, names), input_path(problem, points)

    def run_inputs(rows: Rows) -> Run:
        tensors: dict[str, Tensor] = {}
        watching = watch(names, tensors, summing.direct)
        final = problem.final(problem.corrupted[rows.doc], rows.doc, [embedding(rows), *watching])
        return Run(final, tensors)

    for rows, done, by_final in problem.runs(run_inputs, steps, batch_size):
        check_fired(names, done.tensors)
        docs, place = rows.doc.unique(return_inverse=True)
        apart = {name: tensor[place] for name, tensor in pair.difference(docs).items()}
        summing.add(rows, gradients_at(done.tensors, done.final, by_final), weights, apart)
    return summing.result(pair, hooks)


class Summing:
    """Scores, added up over runs.

    direct: the hooks of which all entries count as set: with `read_only`, or where positions are not told
        apart, those whose edits are carried forward.
    """

    def __init__(
        self,
        problem: Problem,
        names: list[str],
        axes: Sequence[str],
        groups: Mapping[str, int] | None,
        *,
        read_only: bool = False,
        direct: set[str] | None = None,
    ):
        self.problem, self.names = problem, names
        self.axes, self.groups = tuple(axes), groups
        if direct is None:
            direct = {
                name
                for name in names
                if carries_forward(problem.model, name) and (read_only or not over_positions(axes))
            }
            grouped = [name for name in names if carries_forward(problem.model, name) and name not in direct]
            if grouped and any(axis in (groups or {}) for axis in ("pos", "dest")):
                raise ValueError(
                    f"positions of {grouped[0]!r} are carried forward into each other: they cannot be "
                    "grouped but with read_only=True."
                )
        self.direct = direct
        self.by_doc: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(
        self,
        rows: Rows,
        gradients: Mapping[str, Tensor],
        weights: Float[Tensor, " point"],
        apart: Mapping[str, Tensor],
    ) -> None:
        """The scores of one batch of runs. apart: clean - corrupted in every row."""
        for name, gradient in gradients.items():
            parts = Parts(self.problem.model, name, gradient.shape, self.axes, self.groups)
            add_rows(self.by_doc, name, parts.sum(gradient * apart[name]), rows, weights, self.problem.docs)

    def result(self, pair: Pair, hooks: HookFilter) -> Attribution:
        model = self.problem.model
        if hooks is not None and not callable(hooks):  # each was asked for by name
            for name in self.names:
                if not self.by_doc[name].any():
                    self.problem.check_between(name)
        clean, corrupted = pair.metrics()
        return Attribution(
            axes=self.axes,
            scores=Scores(self.by_doc, one_metric=clean.ndim == 0),
            metric_clean=clean,
            metric_corrupted=corrupted,
            n_layers=model.cfg.n_layers,
            aliases=aliases_of(model),
        )


def path_points(steps: int) -> tuple[Float[Tensor, " point"], Float[Tensor, " point"]]:
    """Gauss-Legendre points in [0, 1] and weights, which sum to 1."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    points, weights = np.polynomial.legendre.leggauss(steps)
    return torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)


def input_path(problem: Problem, points: Float[Tensor, " point"]) -> Callable[[Rows], tuple[str, Callable]]:
    """The hook that puts the embeddings of every row at its point between corrupted and clean."""
    pair = Pair(problem, [EMBED])
    apart = pair.difference(torch.arange(problem.docs, device=problem.clean.device))[EMBED]
    start = pair.start[EMBED]

    def hook_of(rows: Rows) -> tuple[str, Callable]:
        share = points.to(start)[rows.point].view(-1, 1, 1)
        return EMBED, lambda embedding, hook: start[rows.doc] + share * apart[rows.doc]

    return hook_of


def own_path(
    problem: Problem,
    name: str,
    pair: Pair,
    points: Float[Tensor, " point"],
    frozen: Sequence[str] = (),
) -> Callable[[Rows], Run]:
    """Corrupted runs with one hook's activation on its way to the clean one, started in the hook's layer.

    frozen: hooks held at what they are in the corrupted run.
    """
    start, apart = pair.start[name], pair.apart[name]
    carries = carries_forward(problem.model, name)
    layer = layer_of(name) if problem.starts_late else None
    before = problem.corrupted
    if layer is not None:
        with torch.no_grad():
            before = problem.model(before, stop_at_layer=layer)

    def held(other: str, rows: Rows) -> Callable:
        sets_all = carries_forward(problem.model, other)
        return lambda activation, hook: setting(pair.start[other][rows.doc], sets_all)

    def run(rows: Rows) -> Run:
        share = points.to(start)[rows.point].view(-1, *[1] * (start.ndim - 1))
        value = (start[rows.doc] + share * apart[rows.doc]).requires_grad_(torch.is_grad_enabled())
        hooks = [(name, lambda activation, hook: setting(value, carries))]
        hooks += [(other, held(other, rows)) for other in frozen]
        return Run(problem.final(before[rows.doc], rows.doc, hooks, layer), {name: value})

    return run
