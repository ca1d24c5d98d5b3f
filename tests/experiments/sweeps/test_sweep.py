"""Sweeps: what is skipped, what fails, what is said; names of runs; tables; logs."""

import json
import sys
import types
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import training
from experiments.claims.definition import all_claims
from experiments.evaluation import Evaluation
from experiments.runs import Run, TrainConfig
from experiments.sweeps import job as job_module
from experiments.sweeps.job import Job, locked
from experiments.sweeps.local import LocalWorkers
from experiments.sweeps.logs import check_log
from experiments.sweeps.naming import essentials, run_name
from experiments.sweeps.on_gpu import GpuWorkers
from experiments.sweeps.sweep import Outcome, progress_table, sweep
from experiments.sweeps.tables import Tables, gather

from ..small import TASK, config


def wide() -> Console:
    return Console(width=200, record=True, force_terminal=False)


class InThisProcess:
    """Workers that are no processes."""

    slots = 2

    def __init__(self, out: Path):
        self.out, self.jobs = out, []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def poll(self, seconds: float) -> list[tuple[Job, str | None]]:
        ended, self.jobs = [(job, job.attempt(self.out)) for job in self.jobs], []
        return ended


def test_a_failure_is_reported_and_stops_no_other_run(tmp_path, monkeypatch):
    good, bad = Job(config(), docs=24), Job(config("mamba"), docs=24)

    def fail(cfg, *args, **kwargs):
        if cfg == bad.config:
            raise ArithmeticError("no numbers")
        return training.train(cfg, *args, **kwargs)

    monkeypatch.setattr(job_module, "train", fail)
    console = wide()
    outcome = sweep([bad, good], tmp_path, InThisProcess(tmp_path), console)
    assert outcome.done == [good.name] and list(outcome.failed) == [bad.name] and outcome.kept == []
    assert "ArithmeticError: no numbers" in outcome.failed[bad.name]
    assert f"1/2 {bad.name}: failed: ArithmeticError: no numbers" in console.export_text()
    assert "no numbers" in (tmp_path / bad.name / "error.txt").read_text()
    monkeypatch.undo()
    outcome = sweep([bad, good], tmp_path, InThisProcess(tmp_path), wide())
    assert outcome.kept == [good.name] and outcome.done == [bad.name], "it is tried again"
    assert not (tmp_path / bad.name / "error.txt").exists()


def test_a_run_that_diverges_has_failed_and_stops_no_other(tmp_path):
    """And is tried again the next time, to the same end."""
    good, bad = Job(config(), docs=24), Job(config(lr=1e30), docs=24)
    for _ in range(2):
        console = wide()
        outcome = sweep([bad, good], tmp_path, InThisProcess(tmp_path), console)
        assert list(outcome.failed) == [bad.name] and good.name in outcome.done + outcome.kept
        assert f"{bad.name}: failed: FloatingPointError: training has diverged" in console.export_text()
        assert "the last finite loss" in (tmp_path / bad.name / "error.txt").read_text()
        assert not len(gather(tmp_path, [bad.name]).runs), "it has no accuracy"


def test_a_run_that_two_grids_ask_for_is_done_once(tmp_path):
    one = Job(config(), docs=24)
    outcome = sweep([one, Job(config(), docs=24)], tmp_path, InThisProcess(tmp_path), wide())
    assert outcome.done == [one.name]


def test_what_another_sweep_is_doing_is_left_to_it(tmp_path):
    """And comes last; here the other one gives up after a while, so that it is done after all."""
    taken, free = Job(config(), docs=24), Job(config("mamba"), docs=24)
    other = ExitStack()
    other.enter_context(locked(tmp_path / ".locks" / taken.name))
    console, workers = wide(), InThisProcess(tmp_path)
    attempts = []

    def submit(job: Job) -> None:
        attempts.append(job.name)
        if len(attempts) == 3:
            other.close()
        workers.jobs.append(job)

    workers.submit = submit
    workers.slots = 1
    outcome = sweep([taken, free], tmp_path, workers, console)
    assert outcome.done == [free.name, taken.name] and attempts == [taken.name, free.name, taken.name]


def test_a_worker_that_dies_takes_its_run_and_no_other(tmp_path):
    """Processes of their own; the first is killed with its job."""
    with LocalWorkers(1, tmp_path) as workers:
        workers.submit(Job(replace(config(), steps=100_000, checkpoint_every=1000, eval_every=1000), docs=24))
        workers.workers[0].process.kill()
        ((_, error),) = workers.poll(60.0)
        assert error is not None and "its process died (exit code -9)" in error
        workers.submit(Job(config(), docs=24))
        ended = []
        while not ended:
            ended = workers.poll(60.0)
        assert ended[0][1] is None
    assert gather(tmp_path, [run_name(config())]).runs.run.tolist() == [run_name(config())]


def test_workers_must_be_at_least_one(tmp_path):
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        LocalWorkers(0, tmp_path)


def test_the_table_of_progress_says_what_is_going_on(tmp_path):
    name = run_name(config())
    training.train(config(), tmp_path / name, progress=False)
    outcome = Outcome(kept=["a"], done=["b", "c"], failed={"d": "error"})
    console = wide()
    console.print(progress_table(tmp_path, outcome, {name: 0.0}, total=10, seconds=60.0))
    text = console.export_text()
    last = Run(tmp_path / name).metrics().iloc[-1]
    assert "1 kept, 2 done, 1 failed, 6 to do, about 2 min to go" in text
    line = next(line for line in text.splitlines() if name in line)
    assert f"{last.loss:.3f}" in line and f"{last.test_accuracy:.1%}" in line and " 12 " in line


def test_the_name_of_a_run_is_that_of_its_config_and_of_no_other():
    for claim in all_claims():
        for size in ("tiny", "small"):
            for cfg in claim.configs(size):
                kept = json.loads(json.dumps(essentials(cfg)))
                assert TrainConfig.from_json(kept) == cfg
    names = {run_name(replace(config(), **{name: value})) for name, value in CHANGES.items()}
    assert len(names | {run_name(config())}) == len(CHANGES) + 1


CHANGES = {
    "steps": 13,
    "lr": 0.1,
    "seed": 1,
    "decay": "linear",
    "n_train": None,
    "stop_at_accuracy": 0.5,
    "task": replace(TASK, held_out=0.1),
    "model": config("mamba").model,
}


def test_an_option_at_its_default_is_not_part_of_the_name():
    kept = essentials(config())
    assert "decay" not in kept and "weight_decay" not in kept and "held_out" not in kept["task"]
    assert kept["lr"] == 1e-2 and kept["model"]["mixers"] == [{"name": "attention"}] * 2


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[Job]]:
    out = tmp_path_factory.mktemp("two")
    jobs = [Job(config(preset), docs=30) for preset in ("attention", "mamba")]
    assert [job.attempt(out) for job in jobs] == [None, None]
    return out, jobs


def test_a_row_is_what_the_two_evaluations_say(two):
    out, jobs = two
    tables = gather(out, [job.name for job in jobs] + ["not there"])
    assert tables.runs.run.tolist() == [job.name for job in jobs]
    for job, row in zip(jobs, tables.runs.to_dict("records"), strict=True):
        own = Evaluation.load(out / job.name / "evaluation.json")
        published = Evaluation.load(out / job.name / "evaluation-published.json")
        assert (own.docs, own.procedure, published.docs, published.procedure) == (
            30,
            "unambiguous",
            24,
            "original",
        )
        assert own.seed != published.seed
        assert row["test_accuracy"] == own.accuracy and row["selection_accuracy"] == published.accuracy
        assert row["mechanism"] == own.mechanism.name and row["gap"] == own.gap
        assert (row["heuristic"], row["heuristic_accuracy"]) == own.best_heuristic
        assert TrainConfig.from_json(json.loads(row["config"])) == job.config
        for evaluation in (own, published):
            part = tables.attributions[
                (tables.attributions.run == job.name)
                & (tables.attributions.procedure == evaluation.procedure)
            ]
            assert part.attrib.tolist() == evaluation.table.attrib.tolist()
    assert set(tables.taps.run) == {jobs[1].name}, "attention has no convolution"
    assert tables.curves[tables.curves.run == jobs[0].name].step.tolist() == [5, 10, 12]


def test_tables_are_kept_and_brought_up_to_date(two, tmp_path):
    out, jobs = two
    names = [job.name for job in jobs]
    tables = gather(out, names)
    tables.save(tmp_path)
    again = Tables.load(tmp_path)
    for mine, theirs in zip(vars(tables).values(), vars(again).values(), strict=True):
        pd.testing.assert_frame_equal(mine, theirs, rtol=1e-4, check_dtype=False)
    changed = replace_runs(tables.of(names[:1]), steps=99)
    updated = again.updated(changed)
    assert updated.runs.set_index("run").steps.to_dict() == {names[0]: 99, names[1]: 12}
    assert len(updated.attributions) == len(tables.attributions)
    assert Tables.load(tmp_path / "nowhere").updated(again).runs.run.tolist() == sorted(names)


def replace_runs(tables: Tables, **columns) -> Tables:
    return Tables(tables.runs.assign(**columns), tables.attributions, tables.taps, tables.curves)


def test_tensorboard_gets_every_evaluation(tmp_path):
    job = Job(config(), docs=24, log="tensorboard")
    assert job.attempt(tmp_path) is None
    events = EventAccumulator(str(tmp_path / job.name / "tensorboard")).Reload()
    metrics = Run(tmp_path / job.name).metrics()
    for name in ("loss", "test_accuracy"):
        logged = events.Scalars(name)
        assert [event.step for event in logged] == metrics.step.tolist()
        assert [event.value for event in logged] == pytest.approx(metrics[name].tolist(), rel=1e-6)


def test_weights_and_biases_gets_every_evaluation(tmp_path, monkeypatch):
    """Through a module that keeps what it is told: the real one wants an account."""
    told: list = []

    class FakeRun:
        def log(self, record, step):
            told.append((step, record["loss"]))

        def finish(self):
            told.append("finished")

    def init(**options):
        told.append(options)
        return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    job = Job(config(), docs=24, log="wandb")
    assert job.attempt(tmp_path) is None
    options, *records, end = told
    assert options["id"] == job.name and options["resume"] == "allow"
    assert options["config"] == job.config.to_json()
    metrics = Run(tmp_path / job.name).metrics()
    assert records == list(zip(metrics.step, metrics.loss)) and end == "finished"


def test_a_logger_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match="pip install wandb"):
        check_log("wandb")
    with pytest.raises(ValueError, match="log must be one of tensorboard, wandb, got 'paper'"):
        check_log("paper")


@pytest.mark.parametrize("log", [None, "tensorboard"])
def test_runs_trained_together_are_those_trained_alone(two, tmp_path, log):
    """As on a GPU, here without one."""
    out, jobs = two
    same = [Job(job.config, docs=job.docs, log=log) for job in jobs]
    with GpuWorkers(tmp_path, device="cpu") as workers:
        outcome = sweep(same, tmp_path, workers, wide())
    names = [job.name for job in jobs]
    assert sorted(outcome.done) == sorted(names) and not outcome.failed
    for mine, theirs in zip(vars(gather(out, names)).values(), vars(gather(tmp_path, names)).values()):
        both = (table.drop(columns=["seconds", "evidence"], errors="ignore") for table in (mine, theirs))
        pd.testing.assert_frame_equal(*both, check_exact=False, rtol=1e-3, atol=1e-4)
    assert (tmp_path / names[0] / "tensorboard").exists() == (log is not None)


def test_a_failure_beside_others_on_a_gpu_is_reported(tmp_path):
    (tmp_path / "out").mkdir()
    good, bad = Job(config(), docs=24), Job(config("mamba"), docs=24)
    Run(tmp_path / "out" / bad.name).start(config(seed=3))  # another run is in its folder
    with GpuWorkers(tmp_path / "out", device="cpu") as workers:
        outcome = sweep([bad, good], tmp_path / "out", workers, wide())
    assert outcome.done == [good.name] and "holds another run" in outcome.failed[bad.name]
    assert "holds another run" in (tmp_path / "out" / bad.name / "error.txt").read_text()
