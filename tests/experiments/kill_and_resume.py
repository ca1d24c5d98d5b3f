"""`python kill_and_resume.py FOLDER`: a run undisturbed, and the same run killed by SIGKILL again and again.

Writes both into FOLDER, and prints what became of each process of the second: how it was to be killed, and
the signal that ended it (0: it finished). Children are forked, so that only one process imports.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from small import config

from experiments import runs
from experiments.training import train
from hooked_ssm import HookedSSM, saving

CONFIG = config("hybrid", steps=200, eval_every=9, checkpoint_every=7, n_train=150)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_line_of_metrics() -> None:
    def half_a_line(run: runs.Run, record: dict) -> None:
        line = json.dumps(record)
        with open(run.folder / "metrics.jsonl", "a") as file:
            file.write(line[: len(line) // 2])
        die()

    runs.Run.log = half_a_line


def die_in_a_checkpoint() -> None:
    """Halfway through the second one."""
    whole, calls = runs.save_file, []

    def half_a_file(tensors: dict, path: Path, metadata: dict) -> None:
        whole(tensors, path, metadata=metadata)
        calls.append(path)
        if len(calls) == 2:
            os.truncate(path, path.stat().st_size // 2)
            die()

    runs.save_file = half_a_file


def die_at_replacing(before: bool) -> None:
    """Around the moment when the second checkpoint takes the place of the first."""
    replace, calls = os.replace, []

    def die_around(source: str, target: Path) -> None:
        calls.append(target)
        second = [Path(path).name for path in calls].count("checkpoint.safetensors") == 2
        if not (second and before):
            replace(source, target)
        if second:
            die()

    saving.os.replace = die_around


def die_before_the_result() -> None:
    """With the model saved and its result not yet there."""
    save = HookedSSM.save

    def die_after(model: HookedSSM, folder: Path) -> None:
        save(model, folder)
        die()

    HookedSSM.save = die_after


@dataclass(frozen=True)
class Attempt:
    """prepare: what is done to the process beforehand. delay: seconds until it is killed from outside."""

    name: str
    prepare: Callable[[], None] = lambda: None
    delay: float | None = None

    def run(self, folder: Path) -> int:
        """The signal that ended the process, or minus its exit status."""
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            status = 1
            try:
                self.prepare()
                train(CONFIG, folder, progress=False)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        if self.delay is not None:
            time.sleep(self.delay)
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return -status


def main(folder: Path) -> None:
    started = time.perf_counter()
    assert Attempt("undisturbed").run(folder / "undisturbed") == 0
    duration = time.perf_counter() - started
    rng = random.Random()
    attempts = [
        Attempt("in a line of metrics", die_in_a_line_of_metrics),
        Attempt("in a checkpoint", die_in_a_checkpoint),
        Attempt("before replacing a checkpoint", lambda: die_at_replacing(before=True)),
        Attempt("after replacing a checkpoint", lambda: die_at_replacing(before=False)),
        *(Attempt("at random", die_before_the_result, rng.uniform(0, 0.3 * duration)) for _ in range(6)),
        Attempt("before the result", die_before_the_result),
        Attempt("not at all"),
    ]
    ends = [(attempt.name, attempt.delay, attempt.run(folder / "killed")) for attempt in attempts]
    print(json.dumps({"duration": duration, "ends": ends}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
