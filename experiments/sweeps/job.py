"""One run of a sweep, from its config to its numbers. Asked again, it goes on where it was.

A run's folder then also has

    evaluation.json            on documents kept for this alone, unambiguous corruption
    evaluation-published.json  as the paper evaluates: the documents of the training's tests, its corruption
    taps.json                  single taps of the short convolutions, where there are any
    row.json                   all of it in one row: there when nothing is left to do
    error.txt                  the traceback, if the last attempt failed
"""

import fcntl
import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.evaluation import Evaluation, evaluate_run
from experiments.runs import Run, TrainConfig
from experiments.sweeps.logs import watcher
from experiments.sweeps.naming import essentials, run_name
from experiments.taps import tap_table
from experiments.training import evaluate, train
from hooked_ssm.saving import write_atomically

BUSY = "busy"  # another sweep is at it
EVALUATION, PUBLISHED = "evaluation.json", "evaluation-published.json"
KEPT_SEED_OFFSET = 2_000_003  # documents that neither training nor selection has seen


@dataclass(frozen=True, eq=False)
class Job:
    """A run to be had. docs: of the evaluation that selects nothing. log: None, "tensorboard" or "wandb"."""

    config: TrainConfig
    docs: int = 1000
    log: str | None = None

    @property
    def name(self) -> str:
        return run_name(self.config)

    def attempt(self, out: Path) -> str | None:
        """Do what is left of the run in the folder of its name; the traceback if that failed, or `BUSY`."""
        folder = out / self.name
        try:
            with locked(out / ".locks" / self.name):
                (folder / "error.txt").unlink(missing_ok=True)
                self.perform(folder)
        except Busy:
            return BUSY
        except Exception as error:
            return keep_error(folder, error)
        return None

    def perform(self, folder: Path) -> None:
        if finished(folder):
            return
        torch.set_num_threads(1)
        with watcher(self.log, folder, self.config) as watch:
            run = train(self.config, folder, progress=False, watch=watch)
        kept = self.config.seed + KEPT_SEED_OFFSET
        published = evaluated(run, PUBLISHED, docs=self.config.n_test, procedure="original")
        own = evaluated(run, EVALUATION, docs=self.docs, seed=kept)
        taps = tap_table(run, docs=self.config.n_test, seed=kept)
        if taps is not None:
            text = json.dumps(taps.to_dict("records"), indent=1) + "\n"
            write_atomically(run.folder / "taps.json", lambda path: path.write_text(text))
        row = json.dumps(self.row(run, published, own), indent=1) + "\n"
        write_atomically(run.folder / "row.json", lambda path: path.write_text(row))

    def row(self, run: Run, published: Evaluation, own: Evaluation) -> dict[str, Any]:
        """What the table of runs says of this one."""
        result, (rule, score) = run.result(), own.best_heuristic
        dev_docs = self.config.test_task.sample(
            self.config.n_test, generator=self.config.seed + KEPT_SEED_OFFSET, split="train"
        )
        return {
            "run": self.name,
            "seed": self.config.seed,
            "lr": self.config.lr,
            "steps": int(result["step"]),
            "selection_docs": published.docs,
            "selection_accuracy": published.accuracy,
            "dev_accuracy": evaluate(run.model(), dev_docs)["test_accuracy"],
            "test_docs": own.docs,
            "test_accuracy": own.accuracy,
            "heuristic": rule,
            "heuristic_accuracy": score,
            "published_gap": published.gap,
            "gap": own.gap,
            "mechanism": own.mechanism.name,
            "evidence": own.mechanism.evidence,
            "seconds": round(result["seconds"], 1),
            "torch": result["torch"],
            "config": json.dumps(essentials(self.config)),
        }


def evaluated(run: Run, name: str, **options: Any) -> Evaluation:
    path = run.folder / name
    return Evaluation.load(path) if path.exists() else evaluate_run(run, keep_as=name, **options)


def keep_error(folder: Path, error: Exception) -> str:
    """The traceback, which is kept in the folder too if that can be."""
    text = "".join(traceback.format_exception(error))
    with suppress(OSError):
        write_atomically(folder / "error.txt", lambda path: path.write_text(text))
    return text


def finished(folder: Path) -> bool:
    return (folder / "row.json").exists()


class Busy(Exception):
    """Another process has the lock."""


@contextmanager
def locked(path: Path, patience: float = 1.0) -> Iterator[None]:
    """Hold a lock that the system frees when its holder dies, however. Raises Busy if another process has it
    for so many seconds: one that was killed may have it a little longer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with open(path, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise Busy(path.name) from error
                time.sleep(0.05)
        yield
