"""The command line: what it runs, what it prints, and how it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from experiments import cli, demo
from experiments.evaluation import Evaluation
from experiments.runs import Run, TrainConfig
from hooked_ssm import zoo
from tasks import AssociativeRecall

runner = CliRunner()
SMALL = (
    "--d-model 8 --setting n_keys=6 --setting n_values=6 --setting n_pairs=2 "
    "--steps 6 --batch-size 8 --n-train 40 --eval-every 4"
)


def invoke(*arguments: str) -> str:
    done = runner.invoke(cli.app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The one line on standard error with which `main` gives up, with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["hooked-ssm", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    assert end.value.code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip("\n")


def test_train_then_evaluate(tmp_path):
    out = tmp_path / "a run"
    output = invoke("train", "mamba", "--out", str(out), *SMALL.split(), "--threads", "1")
    run = Run(out)
    result = run.result()
    assert f"accuracy {result['test_accuracy']:.1%}, loss {result['test_loss']:.3f} on held-out" in output
    assert f"Run: {out}. Next: hooked-ssm evaluate {out}\n" in output, "on one line, to copy"

    output = invoke("evaluate", str(out), "--docs", "24", "--component", "hook_ssm_state", "--threads", "1")
    found = Evaluation.load(out / "evaluation.json")
    assert found.docs == 24 and "blocks.1.hook_ssm_state" in set(found.table.hook)
    for row in found.table.to_dict("records"):
        number = f"{row['attrib']:.3f}".replace("-0.000", "0.000")
        line = next(x for x in output.splitlines() if f" {row['hook']} " in x and f" {row['position']} " in x)
        assert number in line and f"{row['restored']:.3f}" in line
    assert f"accuracy {found.accuracy:.1%}" in output and "24 documents" in output
    assert " ".join(f"{found.mechanism.name}: {found.mechanism.evidence}".split()) in " ".join(output.split())
    assert f"Report: {out / 'report.html'}\n" in output
    assert "<h1>a run</h1>" in (out / "report.html").read_text() and (out / "a-run.png").exists()


def test_treecall_is_trained_and_evaluated_by_distance_depth_and_place(tmp_path):
    sizes = "--d-model 8 --steps 4 --batch-size 8 --n-train 0 --eval-every 4 --threads 1"
    task = "--task associative_treecall --setting max_length=20 --setting n_nonterminals=10"
    output = invoke("train", "attention", "--out", str(tmp_path / "x"), *sizes.split(), *task.split())
    assert "Of the sentences drawn: kept " in output and "too long " in output
    output = invoke("evaluate", str(tmp_path / "x"), "--docs", "60", "--threads", "1")
    for by in ("distance from key to value", "depth of the key", "place of the value"):
        assert f"by {by}" in output


def test_the_folder_one_stands_in_can_be_evaluated(run_of, monkeypatch):
    monkeypatch.chdir(run_of("attention").folder)
    invoke("evaluate", ".", "--docs", "8", "--site", "value", "--procedure", "original")
    found = Evaluation.load(Path("evaluation.json"))
    assert (found.site, found.procedure, found.mechanism.name) == ("value", "original", "not judged")
    assert "<h1>attention</h1>" in Path("report.html").read_text() and Path("attention.png").exists()


def test_options_reach_the_config(tmp_path, monkeypatch):
    seen: list[TrainConfig] = []

    def train(cfg: TrainConfig, folder: Path) -> Run:
        seen.append(cfg)
        raise ValueError("enough")

    monkeypatch.setattr("experiments.training.train", train)
    for arguments in (
        "attention --d-model 16 --n-layers 3 --setting n_keys=9 --setting n_values=8 --setting n_pairs=4 "
        "--setting n_queries=2 --setting query=value --setting held_out=0.1 "
        "--steps 7 --lr 0.02 --batch-size 4 --n-train 0 --eval-every 3 --seed 5",
        "mamba --model d_conv=0 --paper",
        "hybrid --n-layers 4",
    ):
        assert "enough" in str(
            runner.invoke(cli.app, ["train", *arguments.split(), "--out", str(tmp_path)]).exception
        )
    task = AssociativeRecall(n_keys=9, n_values=8, n_pairs=4, n_queries=2, query="value", held_out=0.1)
    assert seen[0] == TrainConfig(
        task=task,
        eval_task=AssociativeRecall(n_keys=9, n_values=8, n_pairs=4, query="value", held_out=0.1),
        model=zoo.attention(d_model=16, n_layers=3, d_vocab=task.d_vocab),
        steps=7,
        lr=0.02,
        batch_size=4,
        n_train=None,
        eval_every=3,
        checkpoint_every=3,
        seed=5,
    )
    paper = AssociativeRecall()
    assert seen[1] == TrainConfig(
        task=paper, model=zoo.mamba(d_model=64, n_layers=2, d_vocab=paper.d_vocab, d_conv=0), steps=50_016
    )
    assert seen[2].model == zoo.hybrid(d_model=64, n_layers=4, d_vocab=paper.d_vocab)


def test_the_demo_writes_where_it_is_told(tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr(demo, "run_demo", lambda folder, console, quick: folders.append((folder, quick)))
    invoke("demo", "--out", str(tmp_path / "x"), "--quick")
    invoke("demo")
    assert folders == [(tmp_path / "x", True), (Path("runs/demo"), False)]


def test_threads_are_set_as_asked(tmp_path, monkeypatch):
    cli.set_threads(None)
    before = torch.get_num_threads()
    cli.set_threads(before + 1)
    assert torch.get_num_threads() == before + 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["demo", "train", "evaluate"]),
        (["demo"], ["--out", "--quick"]),
        (
            ["train"],
            ["--out", "--model", "--task", "--setting", "--paper", "--n-train", "--seed", *zoo.PRESETS],
        ),
        (["evaluate"], ["--docs", "--site", "--procedure", "--component"]),
    ],
)
def test_help_names_everything(command, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    output = invoke(*command, "--help")
    assert all(word in output for word in words), output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "rwkv", "--out", "x"], ["rwkv", *zoo.PRESETS]),
        (["train", "mamba"], ["--out"]),
        (["train", "mamba", "--out", "x", "--steps", "many"], ["--steps", "valid integer"]),
        (["evaluate", "x", "--site", "divider"], ["divider", "key", "value"]),
        (["fly"], ["fly"]),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(arguments, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = runner.invoke(cli.app, arguments)
    assert done.exit_code == 2
    assert all(word in done.output for word in words), done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("evaluate {0}/none", "no config.json in {0}/none: not the folder of a run, or not a finished one."),
        ("train attention --out {0} --model d_conv=4", "'d_conv' is no option of zoo.attention"),
        ("train mamba --out {0} --n-layers 0", "n_layers must be at least 1, got 0."),
        ("train mamba --out {0} --setting n_keys=3", "n_pairs=16, n_keys=3"),
        ("train mamba --out {0} --task recall", "no task named 'recall'; the tasks are associative_recall"),
        ("train mamba --out {0} --setting n_key=3", "associative_recall has no setting 'n_key'"),
        ("train mamba --out {0} --setting n_keys", "--setting wants name=value, got 'n_keys'."),
        ("train hybrid --out {0} --paper", "'hybrid' is no preset of hooked_ssm.zoo.paper"),
        ("train mamba --out {0} --threads 0", "threads must be at least 1, got 0."),
        (
            "train mamba --out {0}/file/run --setting n_keys=20 --setting n_values=20",
            "cannot write into the folder {0}/file/run",
        ),
        (
            "train mamba --out {0}/run --lr 3",
            "{0}/run holds another run, which differs in lr (there 0.001, asked for 3.0",
        ),
        (
            "evaluate {0}/run --component hook_nonsense_pre",
            "no hook named 'blocks.0.hook_nonsense_pre'; did you mean",
        ),
    ],
)
def test_what_the_user_got_wrong_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "file").touch()
    if "/run" in arguments:
        cfg = TrainConfig(
            task=AssociativeRecall(), model=zoo.mamba(d_model=64, n_layers=2, d_vocab=8195), steps=50_016
        )
        Run(tmp_path / "run").start(cfg)
    if "component" in arguments:
        from hooked_ssm import HookedSSM

        Run(tmp_path / "run").finish(HookedSSM(cfg.model), {})
    error = refused(monkeypatch, capsys, *arguments.format(tmp_path).split())
    assert message.format(tmp_path) in error


def test_brackets_in_a_message_are_shown(tmp_path, monkeypatch, capsys):
    """As in "[batch, pos]", which would be taken for colours."""

    def fail(folder, console, quick):
        raise ValueError("tokens must be [batch, pos],\n    got [3]")

    monkeypatch.setattr(demo, "run_demo", fail)
    assert refused(monkeypatch, capsys, "demo") == "tokens must be [batch, pos], got [3]"


def test_a_fault_of_ours_is_not_called_the_users(monkeypatch):
    monkeypatch.setattr(demo, "run_demo", lambda folder, console, quick: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["hooked-ssm", "demo"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_the_process_ends_with_code_two_and_one_line(tmp_path):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from experiments.cli import main; main()",
            "evaluate",
            str(tmp_path / "none"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(root), "COLUMNS": "40"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: no config.json in {tmp_path / 'none'}: not the folder of a run, or not a finished one.\n"
    )


def test_a_report_is_of_the_runs_that_are_named(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "experiments.claims.html.tables_of", lambda claims, runs, kept: asked.append((runs, kept))
    )
    monkeypatch.setattr("experiments.claims.html.write_page", lambda claims, tables, out: out / "report.html")
    output = invoke("report", str(tmp_path / "runs"), "--out", str(tmp_path / "page"), "--no-kept")
    invoke("report")
    assert asked == [(tmp_path / "runs", False), (Path("runs/sweeps"), True)]
    assert f"Report: {tmp_path / 'page' / 'report.html'}\n" in output


def test_a_sweep_refuses_what_is_no_claim_and_a_logger_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert refused(monkeypatch, capsys, "sweep", str(tmp_path)).startswith("no claim.py in")
    monkeypatch.setitem(sys.modules, "wandb", None)
    claim = str(Path(cli.__file__).parent / "ar_depth")
    assert "pip install wandb" in refused(monkeypatch, capsys, "sweep", claim, "--log", "wandb")
    assert not list(tmp_path.iterdir())


def test_a_training_that_diverges_ends_with_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        ["hooked-ssm", "train", "attention", "--out", str(tmp_path), *SMALL.split(), "--lr", "1e30"],
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: training has diverged: the loss is nan at step ")
