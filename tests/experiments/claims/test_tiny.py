"""Every claim from its grid to its page, at the smallest size and for two steps a run."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.claims.definition import Claim, all_claims
from experiments.claims.pages import Measured, claim_block
from experiments.claims.recipes import Cell
from experiments.sweeps.job import Job
from experiments.sweeps.sweep import sweep
from experiments.sweeps.tables import Tables, gather


def shortened(claim: Claim) -> Claim:
    """A few of its tiny runs, of two steps."""
    short = {"steps": 2, "eval_every": 2, "checkpoint_every": 2, "n_test": 8}
    few = [Cell(one.condition, replace(one.config, **short)) for one in claim.cells("tiny")]
    some = few[:: max(1, len(few) // 5)]
    return replace(claim, grid=lambda size: some)


CLAIMS = {claim.name: shortened(claim) for claim in all_claims()}


class InThisProcess:
    slots = 1

    def __init__(self, out: Path):
        self.out, self.jobs = out, []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def poll(self, seconds: float) -> list[tuple[Job, str | None]]:
        ended, self.jobs = [(job, job.attempt(self.out)) for job in self.jobs], []
        return ended


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """One sweep of all claims, which share runs."""
    out = tmp_path_factory.mktemp("tiny")
    jobs = [Job(config, docs=8) for claim in CLAIMS.values() for config in claim.configs("tiny")]
    outcome = sweep(jobs, out, InThisProcess(out), Console(quiet=True))
    assert outcome.failed == {} and len(outcome.done) == len({job.name for job in jobs}) < len(jobs)
    return out


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_from_grid_to_page(name, runs):
    claim = CLAIMS[name]
    tables = gather(runs, [one.name for one in claim.cells("tiny")])
    found = Measured.of(claim, "tiny", tables)
    there, asked = found.runs
    assert there == asked == len(claim.cells("tiny"))
    assert found.verdict in ("reproduced", "partly", "not reproduced", "not yet run")
    text = claim_block(claim, {"tiny": tables})
    assert (f"{there} of {asked} runs" in text and "| 1 of 1 |" in text) or "| 1 |" in text
    for chart in found.figures:
        assert chart.png().startswith(b"\x89PNG")
    assert claim_block(claim, {"tiny": Tables.empty()}) != text
