"""Training one model on one task, so that a killed run goes on and ends with the same numbers."""

import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from experiments.runs import Run, TrainConfig
from hooked_ssm import HookedSSM
from tasks import IGNORE, Documents

TEST_SEED_OFFSET = 1_000_003  # test documents have a stream of their own
FRESH_BLOCK = 128  # batches of fresh documents drawn at a time
SEED_STRIDE = 1_000_003  # between the blocks of one seed and the next: torch uses 32 bits of a seed


def train(
    cfg: TrainConfig,
    folder: str | Path,
    *,
    progress: bool = True,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Train into `folder`, or go on with what is there; a finished run is left as it is.

    watch: called with the record of each evaluation, as it is logged.
    Raises OSError if the folder cannot be written, ValueError if it holds a run of another config or a
    broken checkpoint, FloatingPointError if a loss is not finite: what was reached before stays there.
    """
    run = Run(folder)
    run.start(cfg)
    if run.finished:
        return run
    torch.manual_seed(cfg.seed)
    model = HookedSSM(cfg.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    reached = run.restore(model, optimizer)
    step, seconds_before = int(reached["step"]), reached.get("seconds", 0.0)
    documents = TrainingDocuments(cfg)
    test = cfg.test_task.sample(cfg.n_test, generator=cfg.seed + TEST_SEED_OFFSET, split="test")
    started = time.perf_counter()
    tested = run.metrics()
    record: dict[str, Any] = tested.iloc[-1].to_dict() if len(tested) else {}
    losses = FiniteLosses(cfg, record)

    with progress_bar(disable=not progress) as bar:
        name = f"{cfg.model.mixer_list[-1].name} d={cfg.model.d_model}"
        shown = bar.add_task(name, total=cfg.steps, completed=step, loss=math.nan, accuracy=math.nan)
        while step < cfg.steps and not solved(cfg, record):
            for group in optimizer.param_groups:
                group["lr"] = cfg.lr * schedule(step, cfg.steps, cfg.warmup, cfg.decay)
            loss = supervised_loss(model, documents.batch(step))
            losses.check("loss", step + 1, loss.item())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            bar.update(shown, completed=step)
            last = step == cfg.steps
            if last or step % cfg.eval_every == 0:
                seconds = seconds_before + time.perf_counter() - started
                record = {"step": step, "loss": loss.item(), **evaluate(model, test), "seconds": seconds}
                losses.check("test loss", step, record["test_loss"])
                run.log(record)
                if watch is not None:
                    watch(record)
                bar.update(shown, loss=record["loss"], accuracy=record["test_accuracy"])
            if last or step % cfg.checkpoint_every == 0 or solved(cfg, record):
                seconds = seconds_before + time.perf_counter() - started
                run.save_checkpoint(step, model, optimizer, seconds=seconds)

    run.finish(model, summary(cfg, record, test))
    return run


class FiniteLosses:
    """Ends a training that has diverged. last: the last record of the run that is gone on with, or {}."""

    def __init__(self, cfg: TrainConfig, last: dict[str, Any]):
        self.cfg = cfg
        self.seen = f"{last['loss']:.4g} at step {last['step']:.0f}" if "loss" in last else "none"

    def check(self, what: str, step: int, loss: float) -> None:
        """Raises FloatingPointError for a loss that is not finite."""
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"training has diverged: the {what} is {loss} at step {step} of {self.cfg.steps} (peak rate "
                f"{self.cfg.lr:g}); the last finite loss: {self.seen}. A smaller lr may help."
            )
        self.seen = f"{loss:.4g} at step {step}"


def solved(cfg: TrainConfig, record: dict[str, Any]) -> bool:
    return cfg.stop_at_accuracy is not None and record.get("test_accuracy", 0.0) >= cfg.stop_at_accuracy


def schedule(step: int, steps: int, warmup: float, decay: str = "cosine") -> float:
    """Factor on the learning rate: 0 to 1 over the warm-up, then a cosine or a line to 0."""
    rising = int(steps * warmup)
    if step < rising:
        return step / rising
    if decay == "linear":
        return (steps - step) / (steps - rising)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def supervised_loss(model: HookedSSM, docs: Documents) -> Float[Tensor, ""]:
    """Mean cross entropy where labels are; nothing is computed after the last one."""
    docs = docs.to(model.W_E.device)
    needed = int((docs.labels != IGNORE).any(0).nonzero().max()) + 1
    labels = docs.labels[:, :needed]
    supervised = labels != IGNORE
    logits = model(docs.tokens[:, :needed], logit_positions=supervised)
    return F.cross_entropy(logits, labels[supervised])


@torch.no_grad()
def evaluate(model: HookedSSM, docs: Documents, batch_size: int = 64) -> dict[str, float]:
    """Accuracy (arg max of the full vocabulary), loss and probability of the answers."""
    correct, logprob = [], []
    for start in range(0, len(docs), batch_size):
        part = docs[start : start + batch_size].to(model.W_E.device)
        needed = int(part.answer_pos.max()) + 1
        logits = model(part.tokens[:, :needed], logit_positions=part.answer_pos)
        correct.append(part.is_correct(logits))
        logprob.append(part.answer_logprob(logits))
    logprobs = torch.cat(logprob)
    return {
        "test_accuracy": torch.cat(correct).double().mean().item(),
        "test_loss": -logprobs.double().mean().item(),
        "test_prob": logprobs.double().exp().mean().item(),
    }


class TrainingDocuments:
    """The documents of each step, from the step's number alone, so that nothing need be saved to resume."""

    def __init__(self, cfg: TrainConfig):
        self.cfg = cfg
        self.fixed = None if cfg.n_train is None else cfg.task.sample(cfg.n_train, generator=cfg.seed)
        self.block: tuple[int, Documents] | None = None

    def batch(self, step: int) -> Documents:
        size = self.cfg.batch_size
        if self.fixed is not None:
            return self.fixed[torch.arange(step * size, (step + 1) * size) % len(self.fixed)]
        index, within = divmod(step, FRESH_BLOCK)
        if self.block is None or self.block[0] != index:
            generator = torch.Generator().manual_seed(self.cfg.seed * SEED_STRIDE + index)
            self.block = index, self.cfg.task.sample(FRESH_BLOCK * size, generator=generator)
        return self.block[1][within * size : (within + 1) * size]


def summary(cfg: TrainConfig, record: dict[str, Any], test: Documents) -> dict[str, Any]:
    heuristics = {name: float(p.double().mean()) for name, p in cfg.test_task.heuristics(test).items()}
    return {
        **{key: float(value) for key, value in record.items()},
        "heuristics": heuristics,
        "solving_rule": cfg.test_task.solving_rule,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def progress_bar(**options: Any) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.1%}"),
        TimeRemainingColumn(),
        **options,
    )
