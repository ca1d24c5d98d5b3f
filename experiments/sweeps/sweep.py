"""Do every run of a grid that is not done, with a table of what is going on."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from experiments.runs import Run
from experiments.sweeps.job import BUSY, Job, finished


@runtime_checkable
class Workers(Protocol):
    @property
    def slots(self) -> int:
        """How many jobs at a time are worth while."""
        ...

    def submit(self, job: Job) -> None: ...

    def poll(self, seconds: float) -> list[tuple[Job, str | None]]:
        """The jobs that ended within so many seconds, with what went wrong."""
        ...


@dataclass
class Outcome:
    """Names of runs. kept: were finished before. done: are now. failed: with their tracebacks."""

    kept: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def sweep(jobs: Sequence[Job], out: Path, workers: Workers, console: Console) -> Outcome:
    """Do all jobs, each in the folder of its name under `out`. Those that are finished are skipped, those cut
    off go on, a failure stops no other, and what another sweep is doing is left to it."""
    different = list({job.name: job for job in jobs}.values())
    outcome = Outcome(kept=[job.name for job in different if finished(out / job.name)])
    waiting = [job for job in different if job.name not in outcome.kept]
    running: dict[str, float] = {}
    started = time.monotonic()
    total = len(different)

    def table() -> Table:
        return progress_table(out, outcome, running, total, time.monotonic() - started)

    shown = Live(console=console, get_renderable=table, refresh_per_second=2, transient=True)
    with shown if console.is_terminal else nullcontext():
        while waiting or running:
            while waiting and len(running) < workers.slots:
                job = waiting.pop(0)
                running[job.name] = time.monotonic()
                workers.submit(job)
            for job, error in workers.poll(0.5):
                seconds = time.monotonic() - running.pop(job.name)
                if error == BUSY:
                    waiting.append(job)
                    continue
                if error is None:
                    outcome.done.append(job.name)
                    said = f"{last_words(Run(out / job.name))}, {seconds:.0f} s"
                else:
                    outcome.failed[job.name] = error
                    said = f"[red]failed[/red]: {escape(error.strip().splitlines()[-1])}"
                number = total - len(waiting) - len(running)
                console.print(f"{number}/{total} {job.name}: {said}", soft_wrap=True, highlight=False)
    return outcome


def progress_table(
    out: Path, outcome: Outcome, running: dict[str, float], total: int, seconds: float
) -> Table:
    """Counts in the title, and a line for each run under way."""
    ended = len(outcome.done) + len(outcome.failed)
    left = total - len(outcome.kept) - ended
    rate = f", about {left * seconds / ended / 60:.0f} min to go" if ended and left else ""
    counts = f"{len(outcome.kept)} kept, {len(outcome.done)} done, {len(outcome.failed)} failed, {left} to do"
    table = Table(title=f"{counts}{rate}", box=box.SIMPLE_HEAD)
    table.add_column("run")
    for number in ("step", "loss", "accuracy", "minutes"):
        table.add_column(number, justify="right")
    for name, since in running.items():
        metrics = Run(out / name).metrics()
        cells = ["", "", ""]
        if len(metrics):
            last = metrics.iloc[-1]
            cells = [f"{last.step:.0f}", f"{last.loss:.3f}", f"{last.test_accuracy:.1%}"]
        table.add_row(name, *cells, f"{(time.monotonic() - since) / 60:.1f}")
    return table


def last_words(run: Run) -> str:
    result = run.result()
    return f"accuracy {result['test_accuracy']:.1%} after {result['step']:.0f} steps"
