"""Runs repeat bit for bit, and one that was cut off ends as one that was not."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from experiments import training
from experiments.runs import Run, TrainConfig
from experiments.training import TEST_SEED_OFFSET, TrainingDocuments, train
from hooked_ssm import HookedSSM
from tasks import Documents

from .small import TASK, config


def contents(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict], dict]:
    """All that a run leaves, but for times: weights, optimiser state, metrics, result."""
    metrics = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    result = run.result()
    for record in (*metrics, result):
        assert record.pop("seconds") >= 0
    weights = load_file(run.folder / "model" / "model.safetensors")
    return weights, load_file(run.folder / "checkpoint.safetensors"), metrics, result


def assert_same(one: Run, other: Run) -> None:
    """Bit for bit, and file for file."""
    for a, b in zip(contents(one)[:2], contents(other)[:2], strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert contents(one)[2:] == contents(other)[2:]
    files = [sorted(str(p.relative_to(run.folder)) for p in run.folder.rglob("*")) for run in (one, other)]
    assert files[0] == files[1]


class Killed(BaseException):
    """What no code of ours catches."""


def killed_at(step: int, cfg: TrainConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut off in its step of this number."""
    batch = TrainingDocuments.batch

    def cut_off(documents: TrainingDocuments, at: int):
        if at == step:
            raise Killed
        return batch(documents, at)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingDocuments, "batch", cut_off)
        with pytest.raises(Killed):
            train(cfg, folder, progress=False)


@pytest.mark.parametrize("preset", ["attention", "mamba"])
@pytest.mark.parametrize("n_train", [44, None], ids=["fixed", "fresh"])
def test_the_same_seed_gives_the_same_bits(tmp_path, preset, n_train):
    cfg = config(preset, n_train=n_train)
    one = train(cfg, tmp_path / "one", progress=False)
    torch.manual_seed(99)
    torch.rand(3)
    assert_same(one, train(cfg, tmp_path / "other", progress=False))
    different = train(replace(cfg, seed=1), tmp_path / "different", progress=False)
    assert not torch.equal(different.model().W_E, one.model().W_E)
    assert different.metrics().test_loss.iloc[-1] != one.metrics().test_loss.iloc[-1]


def test_a_run_says_what_it_scored_beside_the_heuristics(tmp_path):
    run = train(config(), tmp_path, progress=False)
    result, last = run.result(), run.metrics().iloc[-1]
    assert all(
        result[name] == last[name] for name in ("step", "loss", "test_accuracy", "test_loss", "test_prob")
    )
    test = TASK.sample(24, generator=TEST_SEED_OFFSET, split="test")
    expected = {name: p.double().mean().item() for name, p in TASK.heuristics(test).items()}
    assert result["heuristics"] == expected and expected["induction"] == 1.0
    assert result["torch"] == torch.__version__ and result["threads"] == torch.get_num_threads()
    assert run.config() == config()


@pytest.mark.parametrize("preset", ["attention", "mamba", "hybrid"])
@pytest.mark.parametrize("n_train", [44, None], ids=["fixed", "fresh"])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(tmp_path, preset, n_train, monkeypatch):
    """Cut off before a checkpoint, before an evaluation, between two checkpoints, and at the end."""
    cfg = config(preset, n_train=n_train)
    undisturbed = train(cfg, tmp_path / "undisturbed", progress=False)
    for step in (1, 4, 5, 8, 11):
        killed_at(step, cfg, tmp_path / "cut", monkeypatch)
    assert_same(undisturbed, train(cfg, tmp_path / "cut", progress=False))


def test_a_run_with_learned_positions_resumes_with_them(tmp_path, monkeypatch):
    cfg = config("attention")
    killed_at(7, cfg, tmp_path, monkeypatch)
    assert "model.pos_embed.W_pos" in load_file(tmp_path / "checkpoint.safetensors")
    before = load_file(tmp_path / "checkpoint.safetensors")["model.pos_embed.W_pos"]
    seen = []

    def look(net: HookedSSM, docs: Documents) -> Tensor:
        seen.append(net.pos_embed.W_pos.detach().clone())
        raise Killed

    monkeypatch.setattr(training, "supervised_loss", look)
    with pytest.raises(Killed):
        train(cfg, tmp_path, progress=False)
    assert torch.equal(seen[0], before)


def test_a_torn_line_of_metrics_is_done_again(tmp_path, monkeypatch):
    cfg = config()
    undisturbed = train(cfg, tmp_path / "undisturbed", progress=False)
    killed_at(11, cfg, tmp_path / "cut", monkeypatch)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == 2
    metrics.write_text(metrics.read_text()[:-9])
    assert_same(undisturbed, train(cfg, tmp_path / "cut", progress=False))


def test_a_run_stops_early_once_it_is_good_enough(tmp_path, monkeypatch):
    scores = {5: 0.4, 10: 0.8, 15: 0.7}
    calls = []

    def scored(net, docs):
        calls.append(5 * (len(calls) + 1))
        return {"test_accuracy": scores[calls[-1]], "test_loss": 1.0, "test_prob": 0.5}

    monkeypatch.setattr(training, "evaluate", scored)
    cfg = config(steps=40, stop_at_accuracy=0.75, checkpoint_every=7)
    run = train(cfg, tmp_path, progress=False)
    assert run.metrics().step.tolist() == [5, 10] and run.result()["step"] == 10
    checkpoint = load_file(tmp_path / "checkpoint.safetensors")
    assert float(checkpoint["optimizer.embed.W_E.step"]) == 10, "the last checkpoint is of the last step"
    assert torch.equal(checkpoint["model.embed.W_E"], run.model().W_E)
    (tmp_path / "result.json").unlink()
    assert train(cfg, tmp_path, progress=False).result()["step"] == 10, "nor does it go on if asked again"
    assert calls == [5, 10]


def test_a_finished_run_is_left_alone(tmp_path, monkeypatch):
    cfg = config()
    train(cfg, tmp_path, progress=False)

    def state() -> dict[Path, tuple[bytes, int]]:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    monkeypatch.setattr(training, "HookedSSM", lambda cfg: pytest.fail("a model was built"))
    assert train(cfg, tmp_path, progress=False).finished
    assert state() == before and len(before) == 6


def test_the_folder_of_another_run_is_left_alone(tmp_path):
    train(config(), tmp_path, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"differs in lr \(there 0.01, asked for 0.02\)"):
        train(config(lr=0.02), tmp_path, progress=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_broken_checkpoint_stops_the_run(tmp_path, monkeypatch):
    cfg = config()
    killed_at(5, cfg, tmp_path, monkeypatch)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        train(cfg, tmp_path, progress=False)


def test_a_folder_that_cannot_be_written_stops_the_run_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(training, "HookedSSM", lambda cfg: pytest.fail("a model was built"))
    with pytest.raises(OSError, match="cannot write into the folder"):
        train(config(), tmp_path / "file" / "run", progress=False)


def test_progress_can_be_watched(tmp_path, capsys):
    train(config(), tmp_path, progress=True)
    assert "attention d=8" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have imported PyTorch")
def test_a_run_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    """With SIGKILL: in a line of metrics, in and around a checkpoint, at random, just before the result."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "kill_and_resume.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parents[1])},
    )
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout)["ends"]
    assert [end for _, _, end in ends] == [9] * 11 + [0], ends
    assert_same(Run(tmp_path / "undisturbed"), Run(tmp_path / "killed"))
    assert len(contents(Run(tmp_path / "killed"))[2]) == 23
