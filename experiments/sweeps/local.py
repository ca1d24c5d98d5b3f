"""Worker processes of this machine, one thread each. One that dies is replaced, and its run has failed."""

import multiprocessing
import multiprocessing.process
import os
import threading
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from experiments.sweeps.job import Job


@dataclass
class Worker:
    process: multiprocessing.process.BaseProcess
    pipe: connection.Connection
    job: Job | None = None


class LocalWorkers:
    """A context manager: leaving it ends the processes, in the middle of what they do."""

    def __init__(self, workers: int, out: Path):
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}.")
        self.slots, self.out = workers, out
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[Worker] = []

    def __enter__(self) -> "LocalWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()

    def submit(self, job: Job) -> None:
        """Hand a job to an idle process, or to a new one. At most `slots` may be under way."""
        idle = next((worker for worker in self.workers if worker.job is None), None) or self._start()
        idle.job = job
        idle.pipe.send(job)

    def poll(self, seconds: float) -> list[tuple[Job, str | None]]:
        """The jobs that ended, within so many seconds, with the error of those that failed."""
        ended = []
        ready = connection.wait([worker.pipe for worker in self.workers], timeout=seconds)
        for worker in [worker for worker in self.workers if worker.pipe in ready]:
            job = worker.job
            try:
                error = worker.pipe.recv()
            except (EOFError, OSError):  # a reset connection is an OSError
                worker.process.join()
                error = f"its process died (exit code {worker.process.exitcode}): killed, or out of memory?"
                worker.pipe.close()
                self.workers.remove(worker)
            worker.job = None
            if job is not None:
                ended.append((job, error))
        return ended

    def _start(self) -> Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=work, args=(theirs, self.out), daemon=True)
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        before = {name: os.environ.get(name) for name in threads}
        os.environ.update(threads)
        try:
            process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        theirs.close()
        self.workers.append(Worker(process, ours))
        return self.workers[-1]


def work(pipe: connection.Connection, out: Path) -> None:
    """Do one job after the other until the pipe closes."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(job.attempt(out))


def die_with_parent() -> None:
    """A sweep that is killed leaves nobody behind who goes on writing."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
