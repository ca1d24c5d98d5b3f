"""The config of a run and its folder: what they hold and what they refuse."""

import json
import math
import os
from dataclasses import replace

import pytest
import torch

from experiments.runs import Run, TrainConfig
from hooked_ssm import HookedSSM
from tasks import AssociativeRecall

from .small import TASK, config, model


@pytest.mark.parametrize("preset", ["attention", "mamba", "hybrid"])
def test_a_config_survives_json(preset):
    cfg = config(
        preset, eval_task=TASK, task=replace(TASK, n_queries=2), n_train=None, stop_at_accuracy=0.9, seed=3
    )
    values = json.loads(json.dumps(cfg.to_json()))
    assert TrainConfig.from_json(values) == cfg
    assert TrainConfig.from_json(json.loads(json.dumps(config(preset).to_json()))) == config(preset)


def test_a_config_of_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match="learning_rate"):
        TrainConfig.from_json(config().to_json() | {"learning_rate": 1e-3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({name: 0}, f"{name} must be at least 1, got 0")
            for name in ("steps", "batch_size", "n_test", "eval_every", "checkpoint_every", "n_train")
        ),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"n_train": 7}, "n_train must be at least batch_size=8, got 7"),
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": math.nan}, "lr must be positive and finite, got nan"),
        ({"lr": math.inf}, "lr must be positive and finite, got inf"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
        ({"warmup": 1.0}, r"warmup is a share of the steps in \[0, 1\), got 1.0"),
        ({"warmup": -0.1}, "warmup is a share"),
        ({"decay": "stepwise"}, "decay must be one of cosine, linear, got 'stepwise'"),
        ({"stop_at_accuracy": 99.0}, "stop_at_accuracy is a share of the documents, got 99.0"),
        ({"model": model(d_vocab=14)}, "the model has d_vocab=14, the task needs 15"),
        ({"eval_task": replace(TASK, n_keys=7)}, "the model has d_vocab=15, the task needs 16"),
        ({"model": model(n_ctx=8)}, "the model has n_ctx=8 positions, documents have up to 9"),
        ({"model": model(n_ctx=9), "eval_task": replace(TASK, n_pairs=3)}, "n_ctx=9 .* have up to 11"),
    ],
)
def test_values_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 2.5), ("batch_size", "8"), ("n_train", 1e5), ("seed", None), ("n_test", True)],
)
def test_counts_must_be_integers(name, value):
    cfg = config()
    object.__setattr__(cfg, name, value)  # past the type checks of the test suite
    with pytest.raises(TypeError, match=repr(value)):
        cfg.__post_init__()


def test_a_model_without_positions_takes_documents_of_any_length():
    config(model=model("mamba", n_ctx=4))


def test_a_folder_takes_the_same_config_again_and_no_other(tmp_path):
    run = Run(tmp_path / "run")
    run.start(config())
    run.start(config())
    assert run.config() == config()
    other = config(lr=3e-3, model=model(d_model=16), task=AssociativeRecall(n_keys=5, n_values=6, n_pairs=2))
    with pytest.raises(ValueError) as error:
        run.start(other)
    message = str(error.value)
    assert "lr (there 0.01, asked for 0.003)" in message and str(run.folder) in message
    assert "model (there" in message and "'d_model': 16" in message and "task (there" in message
    assert not any(f" {name} (" in message for name in ("steps", "seed", "n_train", "batch_size"))
    assert run.config() == config(), "the folder keeps its own config"


@pytest.mark.parametrize("text", ['{"steps": 1', "", "\x00\xff", "[1, 2]"])
def test_a_broken_config_is_refused_by_name(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config.json is not (JSON|of a run)"):
        Run(tmp_path).start(config())


@pytest.mark.parametrize("read", ["config", "result"])
def test_a_folder_that_is_no_run_says_so(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=f"no {read}.json in .*: not the folder of a run"):
        getattr(Run(tmp_path / "nothing"), read)()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write into the folder .*file"):
        Run(tmp_path / "file" / "run").start(config())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is writable for root")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot write into the folder"):
        Run(tmp_path / "run").start(config())
    tmp_path.chmod(0o700)


def test_a_run_is_finished_when_its_result_is_there(tmp_path):
    run = Run(tmp_path)
    net = HookedSSM(config().model)
    assert not run.finished
    run.finish(net, {"test_accuracy": 0.5})
    assert run.finished and run.result() == {"test_accuracy": 0.5}
    loaded = run.model()
    assert loaded.cfg == net.cfg
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), loaded.parameters(), strict=True))


def test_a_run_of_before_an_option_was_added_is_the_same_run(tmp_path):
    cfg = config("mamba")
    Run(tmp_path).start(cfg)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["model"]["mixers"][0]["dt_floor"], values["stop_at_accuracy"]
    path.write_text(json.dumps(values))
    Run(tmp_path).start(cfg)
    with pytest.raises(ValueError, match="holds another run, which differs in lr"):
        Run(tmp_path).start(replace(cfg, lr=0.5))
