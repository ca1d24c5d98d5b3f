"""Workers on a Ray cluster, one processor a run. Every node needs hooked_ssm, and the runs' folder.

A run whose node dies is started again on another, where it goes on from its last checkpoint.
"""

import logging
import socket
from pathlib import Path
from typing import Any

from experiments.sweeps.job import Job

ATTEMPTS_LOST = 5  # nodes that a run may lose before it counts as failed


class RayWorkers:
    """As `LocalWorkers`. Raises ModuleNotFoundError without Ray, ConnectionError without such a cluster."""

    def __init__(self, address: str, out: Path):
        try:
            import ray
        except ImportError as error:
            raise ModuleNotFoundError("--ray needs Ray: pip install 'hooked-ssm[sweep]'.") from error
        check_reachable(address)
        self.ray: Any = ray
        self.out = out.resolve()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        self.remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS_LOST)(attempt)
        self.under_way: dict[Any, Job] = {}

    def __enter__(self) -> "RayWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        for reference in self.under_way:
            self.ray.cancel(reference, force=True)
        self.ray.shutdown()

    @property
    def slots(self) -> int:
        """The processors of the nodes that are alive."""
        return max(1, int(self.ray.cluster_resources().get("CPU", 0)))

    def submit(self, job: Job) -> None:
        self.under_way[self.remote.remote(job, self.out)] = job

    def poll(self, seconds: float) -> list[tuple[Job, str | None]]:
        references = list(self.under_way)
        ready, _ = self.ray.wait(references, num_returns=len(references), timeout=seconds)
        ended = []
        for reference in ready:
            job = self.under_way.pop(reference)
            try:
                error = self.ray.get(reference)
            except self.ray.exceptions.RayError as lost:
                error = f"lost: {lost}"
            ended.append((job, error))
        return ended


def check_reachable(address: str) -> None:
    """ConnectionError where nobody listens; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConnectionError(f"no Ray cluster at {address}: {error.strerror or error}.") from error


def attempt(job: Job, out: Path) -> str | None:
    return job.attempt(out)
