"""Clean and corrupted documents with a metric of the logits, and gradients of it in runs with hooks."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_ssm.patching.checks import check_eval
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
    """A run's logits [slot, d_vocab], and tensors of its graph by name."""

    logits: Tensor
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

    @property
    def docs(self) -> int:
        return len(self.clean)

    def logits(
        self,
        input: Tensor,
        doc: Int[Tensor, " row"],
        hooks: Hooks = (),
        start_at_layer: int | None = None,
    ) -> Float[Tensor, "slot d_vocab"]:
        """Logits where the metric reads, of one run a row."""
        options: dict[str, Any] = {} if start_at_layer is None else {"start_at_layer": start_at_layer}
        if self.unembeds_some:
            options["logit_positions"] = self.slots[doc]
        with self.model.hooks(fwd_hooks=list(hooks)):
            logits = self.model(input, **options)
        return logits if self.unembeds_some else logits[self.slots[doc]]

    def value(self, logits: Float[Tensor, "slot d_vocab"]) -> Tensor:
        """The metric: [doc], or a scalar."""
        value = self.metric(self.shaped(logits))
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

    def gradient(self, logits: Float[Tensor, "slot d_vocab"], points: int = 1) -> tuple[list[Tensor], Tensor]:
        """The metric at every point, and its gradient by the logits (all documents, point after point)."""
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            values = [self.value(part) for part in leaf.chunk(points)]
            total = torch.stack([value.sum() for value in values]).sum()
            if not total.requires_grad or not total.is_floating_point():
                raise ValueError(
                    "the metric cannot be differentiated: what it returns does not depend on the logits by "
                    "differentiable functions (argmax, comparisons, .item(), .detach() and no_grad stop it)."
                )
            (gradient,) = torch.autograd.grad(total, leaf)
        return [value.detach() for value in values], gradient

    def runs(
        self, run: Callable[[Rows], Run], points: int, batch_size: int | None
    ) -> Iterator[tuple[Rows, Run, Tensor]]:
        """All documents at all points of a path, run some at a time, and the metric's gradient by the logits.

        Where not all documents of one point are run at once, every run is done twice: the metric is of them
        all, so that its gradient is known only after their logits.
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
                yield rows, done, self.gradient(done.logits, len(some))[1]
            return
        parts = all_docs.split(at_once)
        counts = [int(self.slots[part].sum()) for part in parts]
        gradients = []
        for point in range(points):
            with torch.no_grad():
                logits = [run(Rows(part, torch.full_like(part, point))).logits for part in parts]
            gradients.append(self.gradient(torch.cat(logits))[1].split(counts))
        for number, part in enumerate(parts):
            for point in range(points):
                rows = Rows(part, torch.full_like(part, point))
                with torch.enable_grad():
                    done = run(rows)
                yield rows, done, gradients[point][number]
