"""A sweep that is killed again and again ends with every run there once, as if nothing had happened."""

import signal
import sys

import pytest

from .sweeping import assert_same_runs, finished, jobs, start, under_way, wait_for


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_sweep_killed_twice_ends_as_an_undisturbed_one(undisturbed, tmp_path):
    """Each time in the middle of a run; the last part is done by two processes."""
    names = sorted(job.name for job in jobs())
    assert len(set(names)) == 12
    for done in (2, 5):
        sweep = start(tmp_path)
        wait_for(lambda done=done: len(finished(tmp_path)) >= done and under_way(tmp_path), sweep)
        sweep.send_signal(signal.SIGKILL)
        sweep.communicate()
    kept = finished(tmp_path)
    before = {name: (tmp_path / name / "row.json").stat().st_mtime_ns for name in kept}
    assert 5 <= len(kept) < 12
    sweep = start(tmp_path, "--workers", "2")
    output = sweep.communicate(timeout=300)[0]
    assert sweep.returncode == 0, output
    assert f"{len(kept)} kept, {12 - len(kept)} done, 0 failed" in output
    assert finished(tmp_path) == names
    folders = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert sorted(folders) == names, "one folder a run"
    assert {name: (tmp_path / name / "row.json").stat().st_mtime_ns for name in kept} == before
    assert_same_runs(undisturbed, tmp_path, names)
