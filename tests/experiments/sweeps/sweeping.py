"""What tests of sweeps need: a sweep as a process of its own, and all that its runs leave."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from experiments.claims.definition import load_claim
from experiments.claims.recipes import DOCS
from experiments.sweeps.job import Job
from experiments.sweeps.tables import gather

ROOT = Path(__file__).parents[3]
GRID = Path(__file__).parent / "grid"


def jobs() -> list[Job]:
    return [Job(config, docs=DOCS["tiny"]) for config in load_claim(GRID).configs("tiny")]


def start(out: Path, *options: str) -> subprocess.Popen:
    command = "from experiments.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", command, "sweep", str(GRID), "--size", "tiny", "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def finished(out: Path) -> list[str]:
    return sorted(path.parent.name for path in out.glob("*/row.json"))


def under_way(out: Path) -> list[str]:
    """Runs with a checkpoint that are not finished."""
    started = {path.parent.name for path in out.glob("*/checkpoint.safetensors")}
    return sorted(started - set(finished(out)))


def wait_for(what: Callable[[], object], sweep: subprocess.Popen, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if sweep.poll() is not None:
            raise AssertionError(f"the sweep ended early: {sweep.communicate()[0]}")
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same_runs(one: Path, other: Path, names: list[str]) -> None:
    """The same files. What training left is the same to the last bit, times aside; evaluations are sums over
    documents, which torch rounds as the addresses of its buffers want it."""
    for name in names:
        assert files_of(one / name) == files_of(other / name)
        for file in ("checkpoint.safetensors", "model/model.safetensors"):
            mine, theirs = load_file(one / name / file), load_file(other / name / file)
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine), (name, file)
        for file in ("config.json", "metrics.jsonl", "result.json"):
            mine, theirs = ([untimed(line) for line in lines(out / name / file)] for out in (one, other))
            assert mine == theirs, (name, file)
    for kind, mine in vars(gather(one, names)).items():
        theirs = getattr(gather(other, names), kind)
        assert len(mine), kind
        both = (table.drop(columns=UNSTABLE, errors="ignore") for table in (mine, theirs))
        pd.testing.assert_frame_equal(*both, check_exact=False, rtol=1e-3, atol=1e-4)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


UNSTABLE = ["seconds", "evidence"]  # which has numbers rounded to two places


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]


def untimed(line: str) -> dict[str, object]:
    values = json.loads(line)
    values.pop("seconds", None)
    return values
