"""The demo, on runs of a few steps; the real one takes minutes."""

import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from experiments import demo
from experiments.evaluation import Evaluation
from experiments.runs import Run, TrainConfig
from hooked_ssm.mixers import (
    AttentionConfig,
    BaseConvConfig,
    BasedConfig,
    DeltaNetConfig,
    H3Config,
    HyenaConfig,
    MambaConfig,
)

from .small import config

SMALL = {"Attention": config("attention"), "Mamba without convolution": config("mamba")}


def wide() -> Console:
    return Console(width=200, record=True, file=None, force_terminal=False)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(1))


WANTED = {
    "Attention": [AttentionConfig()] * 2,
    "Based": [BaseConvConfig(d_conv=3), BasedConfig()],
    "Mamba": [MambaConfig()] * 2,
    "Mamba without convolution": [MambaConfig(d_conv=0)] * 2,
    "DeltaNet": [DeltaNetConfig()] * 2,
    "H3": [H3Config()] * 2,
    "Hyena": [HyenaConfig()] * 2,
}


@pytest.mark.parametrize("name", WANTED)
def test_the_demos_models_are_what_their_names_say(name):
    configs = demo.demo_configs()
    assert list(configs) == list(WANTED)
    cfg = configs[name]
    assert cfg.model.mixer_list == WANTED[name]
    assert cfg.test_task == demo.TASK
    assert cfg.n_train is None, "the report says that no document repeats"
    assert TrainConfig.from_json(json.loads(json.dumps(cfg.to_json()))) == cfg
    assert pickle.loads(pickle.dumps(cfg)) == cfg, "it is handed to other processes"


def test_a_quick_demo_has_some_of_the_models(tmp_path, monkeypatch, one_process):
    configs = {"Attention": config("attention"), "Hyena": config("hyena")}
    monkeypatch.setattr(demo, "demo_configs", lambda: configs)
    demo.run_demo(tmp_path, wide(), quick=True)
    assert (tmp_path / "attention").exists() and not (tmp_path / "hyena").exists()
    assert set(demo.QUICK) < set(WANTED)


def test_the_demo_trains_evaluates_and_reports(tmp_path, monkeypatch, one_process):
    monkeypatch.setattr(demo, "demo_configs", lambda: SMALL)
    console = wide()
    page = demo.run_demo(tmp_path / "demo", console)
    text = console.export_text()
    assert page == tmp_path / "demo" / "report.html" and f"Report: {page}" in text
    for name, cfg in SMALL.items():
        folder = tmp_path / "demo" / name.lower().replace(" ", "-")
        run, found = Run(folder), Evaluation.load(folder / "evaluation.json")
        assert run.finished and run.config() == cfg
        assert f"{name}: {found.mechanism.name}. {found.mechanism.evidence}" in text
        assert (tmp_path / "demo" / f"{folder.name}.png").read_bytes().startswith(b"\x89PNG")
        assert name in page.read_text()


def test_a_second_demo_trains_nothing_again(tmp_path, monkeypatch, one_process):
    monkeypatch.setattr(demo, "demo_configs", lambda: SMALL)
    page = demo.run_demo(tmp_path, wide())
    kept = {
        path: path.stat().st_mtime_ns
        for path in tmp_path.rglob("*")
        if path.is_file() and path.parent != tmp_path
    }
    page.unlink()
    monkeypatch.setattr(demo, "evaluate_run", lambda run: pytest.fail("evaluated again"))
    assert demo.run_demo(tmp_path, wide()).exists()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept and len(kept) == 14


def test_runs_are_trained_in_processes_of_their_own(tmp_path):
    configs = {"Mamba": config("mamba")}
    found = demo.train_and_evaluate(configs, {"Mamba": tmp_path / "mamba"})
    assert list(found) == ["Mamba"]
    run = Run(tmp_path / "mamba")
    assert run.finished and run.result()["threads"] == 1
    assert found["Mamba"].mechanism == Evaluation.load(run.folder / "evaluation.json").mechanism


def test_what_goes_wrong_in_a_process_is_raised_here(tmp_path, one_process):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write into the folder"):
        demo.train_and_evaluate({"Mamba": config("mamba")}, {"Mamba": tmp_path / "file" / "run"})


def test_the_table_has_the_numbers_of_every_model(evaluated):
    evaluations = {f"the {preset}": found for preset, (_, found) in evaluated.items()}
    console = wide()
    console.print(demo.summary_table("How do they recall?", evaluations))
    lines = console.export_text().splitlines()
    for name, found in evaluations.items():
        row = next(line for line in lines if name in line)
        expected = [
            f"{found.accuracy:.1%}",
            f"{found.best_heuristic[1]:.1%}",
            found.mechanism.name,
            found.best_conv_cell,
        ]
        expected += [
            found.cell("blocks.1.hook_resid_pre", position) for position in ("key", "value", "query")
        ]
        cells = [cell for cell in re.split(r"\s{2,}", row.strip()) if cell]
        assert sorted(cells) == sorted([name, *expected])
