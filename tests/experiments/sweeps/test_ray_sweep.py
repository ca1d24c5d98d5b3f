"""The same sweep on a Ray cluster of two nodes, of which one is killed while it works."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.sweeps.on_ray import RayWorkers

from .sweeping import ROOT, assert_same_runs, finished, jobs, start, under_way, wait_for

pytest.importorskip("ray")

if sys.platform != "linux":
    pytest.skip("a cluster of several nodes on one machine is for Linux", allow_module_level=True)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Two nodes on this machine."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    quiet = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **quiet})
    found.other = found.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    try:
        yield found
    finally:
        found.shutdown()


def test_a_sweep_survives_the_death_of_a_node(undisturbed, tmp_path, cluster):
    names = sorted(job.name for job in jobs())
    out = tmp_path / "out"
    sweep = start(out, "--ray", cluster.address)
    try:
        wait_for(lambda: len(finished(out)) >= 2 and len(under_way(out)) == 2, sweep)
        cluster.remove_node(cluster.other, allow_graceful=False)
        output = sweep.communicate(timeout=300)[0]
    finally:
        with contextlib.suppress(OSError):
            sweep.kill()
    assert sweep.returncode == 0, output
    assert "0 kept, 12 done, 0 failed" in output
    assert finished(out) == names
    assert_same_runs(undisturbed, out, names)


def test_a_cluster_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConnectionError, match=r"no Ray cluster at 127\.0\.0\.1:1: "):
        RayWorkers("127.0.0.1:1", tmp_path)
