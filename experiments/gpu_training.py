"""Many small models trained at a time on one GPU.

At d_model 16 to 256 a training step is a few hundred kernels of a few microseconds each: most of the time
would go into launching them. So a whole step is captured once as a CUDA graph and then replayed: documents,
learning rate, forward, loss, backward, AdamW. All it needs lies on the GPU, the number of the step included,
and the host only says "again". Each run has a stream of its own: small kernels of several share the chip.

`training.train` says what is computed. Without a GPU the same step runs op by op, and the numbers are those
of `training.train` to the last bit where documents are all as long; else to rounding, since here all batches
are cut at one length.

A run's folder is that of `training.train`: either may go on with what the other began.

This was never run on a GPU. What was tested, on a CPU: the numbers, and that a step never asks the device for
a value, which is what capture forbids.
"""

import math
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.runs import ADAMW, Run, TrainConfig
from experiments.training import (
    FRESH_BLOCK,
    TEST_SEED_OFFSET,
    FiniteLosses,
    TrainingDocuments,
    evaluate,
    progress_bar,
    schedule,
    solved,
    summary,
)
from hooked_ssm import HookedSSM
from tasks import IGNORE, Documents

WARM_UPS = 3  # steps before capture, in which libraries set themselves up; they are undone


class Trained(NamedTuple):
    """error: what ended the run early, if anything did."""

    run: Run
    error: Exception | None


def train_many(
    runs: Sequence[tuple[TrainConfig, str | Path]],
    *,
    device: str | torch.device | None = None,
    at_once: int = 8,
    progress: bool = True,
) -> list[Trained]:
    """Train each config into its folder, `at_once` at a time on a GPU, one after the other without.

    device: None for the GPU if there is one. A run that fails is reported, and the others go on.
    """
    trainer = Trainer(device)
    ended: dict[int, Trained] = {}
    waiting = list(enumerate(runs))
    with progress_bar(disable=not progress) as bar:
        shown = bar.add_task("runs", total=len(waiting), loss=math.nan, accuracy=math.nan)
        while waiting or trainer.training:
            while waiting and len(trainer.training) < (at_once if trainer.device.type == "cuda" else 1):
                key, (cfg, folder) = waiting.pop(0)
                trainer.add(key, cfg, folder)
            for key, trained in trainer.advance(seconds=1.0):
                ended[key] = trained
                bar.advance(shown)
            records = [training.record for training in trainer.training.values() if training.record]
            if records:
                bar.update(shown, loss=records[-1]["loss"], accuracy=records[-1]["test_accuracy"])
    return [ended[key] for key in range(len(runs))]


class Trainer:
    """Runs under way on one device, each known by a key that whoever adds it chooses."""

    def __init__(self, device: str | torch.device | None = None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.training: dict[Any, Training] = {}
        self.ended: list[tuple[Any, Trained]] = []

    def add(self, key: Any, cfg: TrainConfig, folder: str | Path) -> None:
        """Begin a run, or go on with what is in its folder."""
        run = Run(folder)
        try:
            run.start(cfg)
            if not run.finished:
                self.training[key] = Training(cfg, run, self.device)
                return
        except Exception as error:
            self.ended.append((key, Trained(run, error)))
        else:
            self.ended.append((key, Trained(run, None)))

    def advance(self, seconds: float) -> list[tuple[Any, Trained]]:
        """Train for about so long; the runs that ended."""
        until = time.perf_counter() + seconds
        while self.training and time.perf_counter() < until:
            for key, training in list(self.training.items()):
                error = None
                try:
                    going_on = training.advance()
                except Exception as failure:
                    going_on, error = False, failure
                if not going_on:
                    del self.training[key]
                    self.ended.append((key, Trained(training.run, error)))
        ended, self.ended = self.ended, []
        return ended


class Training:
    """One run, step by step; evaluated, logged and saved when `training.train` would. A loss that is not
    finite is found when it is next evaluated."""

    def __init__(self, cfg: TrainConfig, run: Run, device: torch.device):
        self.cfg, self.run = cfg, run
        torch.manual_seed(cfg.seed)
        model = HookedSSM(cfg.model).to(device)
        self.step = GraphReadyStep(cfg, model)
        reached = run.restore(model, self.step.optimizer)
        self.step.begin(int(reached["step"]))
        self.seconds_before, self.started = reached.get("seconds", 0.0), time.perf_counter()
        self.test = cfg.test_task.sample(cfg.n_test, generator=cfg.seed + TEST_SEED_OFFSET, split="test")
        tested = run.metrics()
        self.record: dict[str, Any] = tested.iloc[-1].to_dict() if len(tested) else {}
        self.losses = FiniteLosses(cfg, self.record)

    def advance(self) -> bool:
        """One step, unless nothing is left to do; whether that was so."""
        cfg, run, step = self.cfg, self.run, self.step
        if step.number >= cfg.steps or solved(cfg, self.record):
            run.finish(step.model, summary(cfg, self.record, self.test) | {"device": str(step.device)})
            return False
        step()
        last = step.number == cfg.steps
        if last or step.number % cfg.eval_every == 0:
            with step.on_stream():
                numbers = {"loss": step.loss.item(), **evaluate(step.model, self.test)}
            for what, name in (("loss", "loss"), ("test loss", "test_loss")):
                self.losses.check(what, step.number, numbers[name])
            self.record = {"step": step.number, **numbers, "seconds": self.seconds}
            run.log(self.record)
        if last or step.number % cfg.checkpoint_every == 0 or solved(cfg, self.record):
            with step.on_stream():
                run.save_checkpoint(step.number, step.model, step.optimizer, seconds=self.seconds)
        return True

    @property
    def seconds(self) -> float:
        """Of wall time, in which other runs were trained too."""
        return self.seconds_before + time.perf_counter() - self.started


class GraphReadyStep:
    """One training step that never asks the device for a value: on a GPU it is captured and replayed.

    number: of steps done, on the host. loss: that of the last step, on the device.
    """

    def __init__(self, cfg: TrainConfig, model: HookedSSM):
        self.cfg, self.model, self.device = cfg, model, model.W_E.device
        on_gpu = self.device.type == "cuda"
        # CUDA's fused AdamW reads a float32 rate; the CPU's computes with the double it is given.
        dtype = torch.float32 if on_gpu else torch.float64
        rates = [cfg.lr * schedule(step, cfg.steps, cfg.warmup, cfg.decay) for step in range(cfg.steps)]
        self.rates = torch.tensor(rates, dtype=dtype, device=self.device)
        self.rate = torch.zeros((), dtype=dtype, device=self.device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.rate, weight_decay=cfg.weight_decay, fused=True, capturable=on_gpu
        )
        self.loss = torch.zeros((), dtype=model.W_E.dtype, device=self.device)
        self.documents = DocumentsOnDevice(cfg, self.device)
        self.number = 0
        self.counter = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.graph: Any = None
        self.capturable = on_gpu
        self.stream = torch.cuda.Stream(self.device) if on_gpu else None

    def begin(self, number: int) -> None:
        """From here on, with what the optimiser holds."""
        self.number = number
        self.counter.fill_(number)
        for p in self.model.parameters():
            if p not in self.optimizer.state:  # as AdamW begins
                zeros = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.optimizer.state[p] = {"step": step, **zeros}

    def __call__(self) -> None:
        with self.on_stream():
            if self.documents.prepare(self.number):
                self.graph = None  # shapes have changed
            if self.capturable and self.graph is None:
                self.capture()
            self.compute() if self.graph is None else self.graph.replay()
        self.number += 1

    def on_stream(self) -> Any:
        """Inside, what the host asks for comes after the steps so far."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def compute(self) -> None:
        """All of one step."""
        self.rate.copy_(self.rates.index_select(0, self.counter).squeeze(0))
        tokens, places, labels = self.documents.batch(self.counter)
        # Not model(tokens), which looks whether the tokens are in the vocabulary.
        embedded = self.model._embed(tokens, 0)
        resid = self.model(embedded, start_at_layer=0, stop_at_layer=self.cfg.model.n_layers)
        final = self.model.ln_final(resid).flatten(0, 1).index_select(0, places.flatten())
        loss = F.cross_entropy(final @ self.model.W_U, labels.flatten(), ignore_index=IGNORE)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.loss.copy_(loss.detach())
        self.counter.add_(1)

    def capture(self) -> None:
        """Record one step as a graph, after a few that are undone."""
        kept = [tensor.clone() for tensor in self.state()]
        self.warm_up()
        self.set_state(kept)
        graph = torch.cuda.CUDAGraph()
        try:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph, stream=self.stream):
                self.compute()
            self.graph = graph
        except RuntimeError as error:
            self.capturable = False
            self.set_state(kept)
            warnings.warn(f"a training step could not be captured, and runs op by op: {error}", stacklevel=2)

    def warm_up(self) -> None:
        for _ in range(WARM_UPS):
            self.compute()

    def state(self) -> list[Tensor]:
        """All that a step changes."""
        moments = (self.optimizer.state[p][key] for p in self.model.parameters() for key in ADAMW)
        return [self.counter, self.rate, self.loss, *self.model.parameters(), *moments]

    @torch.no_grad()
    def set_state(self, kept: Sequence[Tensor]) -> None:
        for tensor, value in zip(self.state(), kept, strict=True):
            tensor.copy_(value)


class DocumentsOnDevice:
    """The documents of `TrainingDocuments`, on the device, so that a step finds its own by its number there.

    Of each only what a step reads: tokens as far as labels go, [document, pos]; where labels are, and what
    they are, [document, label], filled up with places at 0 and IGNORE.
    """

    def __init__(self, cfg: TrainConfig, device: torch.device):
        self.cfg, self.device = cfg, device
        self.source = TrainingDocuments(cfg)
        self.block: int | None = None
        self.offset = torch.zeros(1, dtype=torch.int64, device=device)
        self.within = torch.arange(cfg.batch_size, device=device)
        self.tensors: tuple[Tensor, Tensor, Tensor] | None = None

    def prepare(self, step: int) -> bool:
        """See to it that the documents of this step are there; whether they have got another shape."""
        block = 0 if self.source.fixed is not None else step // FRESH_BLOCK
        if block == self.block:
            return False
        self.block = block
        size = self.cfg.batch_size
        if self.source.fixed is not None:
            docs = self.source.fixed
        else:
            self.source.batch(step)
            assert self.source.block is not None
            docs = self.source.block[1]
            self.offset.fill_(block * FRESH_BLOCK * size)
        shape = (1, 1) if self.tensors is None else (self.tensors[0].shape[1], self.tensors[1].shape[1])
        new = _what_a_step_reads(docs, *shape)
        if self.tensors is not None and all(a.shape == b.shape for a, b in zip(self.tensors, new)):
            for tensor, values in zip(self.tensors, new):
                tensor.copy_(values)
            return False
        self.tensors = tuple(tensor.to(self.device) for tensor in new)  # pyright: ignore
        return True

    def batch(self, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [batch, pos]; labels [batch, label], and their places in the batch's tokens, end to end."""
        assert self.tensors is not None
        tokens, places, labels = self.tensors
        rows = (step * self.cfg.batch_size + self.within - self.offset) % len(tokens)
        tokens, places, labels = (tensor.index_select(0, rows) for tensor in (tokens, places, labels))
        return tokens, places + self.within[:, None] * tokens.shape[1], labels


def _what_a_step_reads(docs: Documents, length: int, n_labels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, places and labels, at least so many of each a document."""
    supervised = docs.labels != IGNORE
    length = max(length, int(supervised.any(0).nonzero().max()) + 1)
    counts = supervised.sum(1)
    n_labels = max(n_labels, int(counts.max()))
    missing = max(0, length - docs.tokens.shape[1])
    tokens = F.pad(docs.tokens, (0, missing))[:, :length].contiguous()
    rows, found = supervised.nonzero(as_tuple=True)
    index = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    places = torch.zeros(len(docs), n_labels, dtype=torch.int64)
    labels = torch.full((len(docs), n_labels), IGNORE)
    places[rows, index] = found
    labels[rows, index] = docs.labels[rows, found]
    return tokens, places, labels
