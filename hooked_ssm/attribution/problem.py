"""Clean and corrupted documents with a metric of the logits, and gradients of it in runs with hooks."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_ssm.patching.base_run import BaseRun, unembeds_late
from hooked_ssm.patching.between import check_between
from hooked_ssm.patching.checks import check_eval
from hooked_ssm.patching.lazy_logits import LazyLogits
from hooked_ssm.patching.logits import LogitPositions, wanted_logits

ROWS = 64  # runs at once where documents are fewer and the caller does not say
Hooks = Sequence[tuple[str, Callable]]


@dataclass(frozen=True)
class Rows:
    """Runs stacked on the batch axis: of which document each is, and at which point of a path."""

    doc: Int[Tensor, " row"]
    point: Int[Tensor, " row"]


@dataclass(frozen=True)
class Run:
    """How a run ends, [slot, d] (`Problem.run`), and tensors of its graph by name."""

    final: Tensor
    tensors: dict[str, Tensor]


class Problem:
    """What is attributed.

    clean, corrupted: [doc, pos].
    metric: of the logits of all documents, giving one value a document, [doc], each of which depends on its
        own document only, or a scalar.
    logit_positions: where the metric reads, as in `patch_sweep`.
    """

    def __init__(
        self,
        model: Any,
        clean: Int[Tensor, "doc pos"],
        corrupted: Int[Tensor, "corrupted_doc corrupted_pos"],
        metric: Callable[[Tensor], Any],
        logit_positions: LogitPositions = None,
    ):
        check_eval(model)
        if clean.shape != corrupted.shape:
            raise ValueError(
                "clean and corrupted documents must have one shape [doc, pos], "
                f"got {list(clean.shape)} and {list(corrupted.shape)}."
            )
        if not callable(metric):
            raise TypeError(f"a metric must be a function of logits; {metric!r} cannot be called.")
        if torch.is_inference_mode_enabled() or any(p.is_inference() for p in model.parameters()):
            raise ValueError(
                "attribution needs gradients, which there are none of in torch.inference_mode() or for "
                "weights made in it: call it outside, with a model made outside."
            )
        self.model, self.clean, self.corrupted, self.metric = model, clean, corrupted, metric
        self.slots, self.shaped = wanted_logits(clean, logit_positions)
        accepted = inspect.signature(model.forward).parameters
        self.unembeds_some = "logit_positions" in accepted
        self.starts_late = {"logit_positions", "start_at_layer", "stop_at_layer"} <= set(accepted)
        self.unembeds_late = self.starts_late and unembeds_late(model)

    @property
    def docs(self) -> int:
        return len(self.clean)

    def final(
        self,
        input: Tensor,
        doc: Int[Tensor, " row"],
        hooks: Hooks = (),
        start_at_layer: int | None = None,
    ) -> Float[Tensor, "slot d"]:
        """How one run a row ends where the metric may read: with what logits are made of, or the logits."""
        options: dict[str, Any] = {} if start_at_layer is None else {"start_at_layer": start_at_layer}
        with self.model.hooks(fwd_hooks=list(hooks)):
            if self.unembeds_late:
                resid = self.model(input, stop_at_layer=self.model.cfg.n_layers, **options)
                return self.model.ln_final(resid)[self.slots[doc]]
            if self.unembeds_some:
                return self.model(input, logit_positions=self.slots[doc], **options)
            return self.model(input, **options)[self.slots[doc]]

    def measure(self, final: Float[Tensor, "slot d"]) -> Tensor:
        """The metric of runs that end so: [doc], or a scalar."""
        unembed = self.model.unembedded if self.unembeds_late else lambda logits: logits
        return self._checked(self.metric(LazyLogits(self.shaped(final), unembed)))

    def value(self, logits: Float[Tensor, "slot d_vocab"]) -> Tensor:
        """The metric of logits: [doc], or a scalar."""
        return self._checked(self.metric(self.shaped(logits)))

    def _checked(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a metric must return a tensor, got {type(value).__name__}: there is no gradient of it."
            )
        if value.shape not in ((), (self.docs,)):
            raise ValueError(
                f"a metric must return a scalar, or one value a document, [{self.docs}], "
                f"got shape {list(value.shape)}."
            )
        return value

    def gradient(self, final: Float[Tensor, "slot d"], points: int = 1) -> tuple[list[Tensor], Tensor]:
        """The metric at every point, and its gradient by the ends (all documents, point after point)."""
        with torch.enable_grad():
            leaf = final.detach().requires_grad_()
            values = [self.measure(part) for part in leaf.chunk(points)]
            total = torch.stack([value.sum() for value in values]).sum()
            gradient = None
            if total.requires_grad and total.is_floating_point():
                (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
            if gradient is None:
                raise ValueError(
                    "the metric cannot be differentiated: what it returns does not depend on the logits by "
                    "differentiable functions (argmax, comparisons, .item(), .detach() and no_grad stop it)."
                )
        return [value.detach() for value in values], gradient

    def runs(
        self, run: Callable[[Rows], Run], points: int, batch_size: int | None
    ) -> Iterator[tuple[Rows, Run, Tensor]]:
        """All documents at all points of a path, run some at a time, and the metric's gradient by their ends.

        Where not all documents of one point are run at once, every run is done twice: the metric is of them
        all, so that its gradient is known only after all have been run.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        at_once = batch_size or max(self.docs, ROWS)
        device, all_docs = self.clean.device, torch.arange(self.docs, device=self.clean.device)
        if at_once >= self.docs:
            for some in torch.arange(points, device=device).split(at_once // self.docs):
                rows = Rows(all_docs.repeat(len(some)), some.repeat_interleave(self.docs))
                with torch.enable_grad():
                    done = run(rows)
                yield rows, done, self.gradient(done.final, len(some))[1]
            return
        parts = all_docs.split(at_once)
        counts = [int(self.slots[part].sum()) for part in parts]
        gradients = []
        for point in range(points):
            with torch.no_grad():
                ends = [run(Rows(part, torch.full_like(part, point))).final for part in parts]
            gradients.append(self.gradient(torch.cat(ends))[1].split(counts))
        for number, part in enumerate(parts):
            for point in range(points):
                rows = Rows(part, torch.full_like(part, point))
                with torch.enable_grad():
                    done = run(rows)
                yield rows, done, gradients[point][number]

    @torch.no_grad()
    def check_between(self, name: str, *, replaced: bool = True) -> None:
        """Raises ValueError for a hook that does not lie between the inputs and the metric.

        replaced: whether it is looked at for what the clean run has there, which then must not be the same
            whatever the tokens.
        """
        base, clean = BaseRun(self.model, self.corrupted, self.slots, whole=True), None
        if replaced:
            clean = BaseRun(self.model, self.clean, self.slots, whole=True).activations([name])[name]
        check_between(base, name, clean)
