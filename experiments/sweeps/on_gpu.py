"""One process that trains many runs at a time on a GPU, see `experiments.gpu_training`."""

from contextlib import ExitStack
from pathlib import Path

import torch

from experiments.gpu_training import Trained, Trainer
from experiments.sweeps.job import BUSY, Busy, Job, finished, keep_error, locked
from experiments.sweeps.logs import watcher

AT_ONCE = 8


class GpuWorkers:
    """As `LocalWorkers`. device: None for the GPU, if there is one."""

    slots = AT_ONCE

    def __init__(self, out: Path, device: str | torch.device | None = None):
        self.out, self.trainer = out, Trainer(device)
        self.locks: dict[Job, ExitStack] = {}
        self.busy: list[tuple[Job, str | None]] = []

    def __enter__(self) -> "GpuWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        for held in self.locks.values():
            held.close()

    def submit(self, job: Job) -> None:
        held = ExitStack()
        try:
            held.enter_context(locked(self.out / ".locks" / job.name))
        except Busy:
            self.busy.append((job, BUSY))
            return
        self.locks[job] = held
        self.trainer.add(job, job.config, self.out / job.name)

    def poll(self, seconds: float) -> list[tuple[Job, str | None]]:
        ended, self.busy = self.busy, []
        for job, trained in self.trainer.advance(seconds):
            self.locks.pop(job).close()
            ended.append((job, self._evaluated(job, trained)))
        return ended

    def _evaluated(self, job: Job, trained: Trained) -> str | None:
        """Evaluate a run that has been trained; what went wrong, then or before."""
        folder = self.out / job.name
        if trained.error is not None:
            return keep_error(folder, trained.error)
        if not finished(folder):
            with watcher(job.log, folder, job.config) as watch:
                if watch is not None:
                    for record in trained.run.metrics().to_dict("records"):
                        watch({str(name): value for name, value in record.items()})
        return job.attempt(self.out)
