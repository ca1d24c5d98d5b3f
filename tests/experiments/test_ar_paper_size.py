"""The experiment at the paper's size: its configurations, and its results from runs of a few steps."""

import pandas as pd
import pytest

from experiments.ar_paper_size import reproduce as experiment
from experiments.evaluation import Evaluation, evaluate_run
from experiments.mechanism import MECHANISMS
from experiments.runs import Run, TrainConfig
from hooked_ssm.mixers import AttentionConfig, MambaConfig

from .small import config


@pytest.mark.parametrize(("architecture", "lr"), experiment.RUNS)
def test_the_configs_are_the_papers(architecture, lr):
    """4096 keys and values, 16 pairs; 16 epochs of 100,032 documents, 32 a step; AdamW, warm-up, cosine."""
    cfg = experiment.config(architecture, lr)
    task = cfg.task.to_dict()
    assert task == {
        "task": "associative_recall",
        "n_keys": 4096,
        "n_values": 4096,
        "n_pairs": 16,
        "n_queries": 1,
        "query": "key",
        "held_out": 0.0,
        "split_seed": 0,
    }
    assert (cfg.n_train, cfg.batch_size, cfg.steps) == (100_032, 32, 50_016)
    assert cfg.steps * cfg.batch_size == 16 * cfg.n_train
    assert (cfg.n_test, cfg.eval_task, cfg.stop_at_accuracy) == (320, None, None)
    assert (cfg.lr, cfg.weight_decay, cfg.warmup) == (float(lr), 0.0, 0.1)
    net = cfg.model
    assert (net.d_model, net.n_layers, net.d_vocab, net.tie_embeddings) == (64, 2, 8195, True)
    assert (net.embed_std, net.final_norm) == (0.02, "LN")
    if architecture == "attention":
        assert net.mixer_list == [AttentionConfig()] * 2 and net.n_heads == 1 and net.d_mlp == 256
        assert (net.positional_embedding_type, net.normalization_type) == ("standard", "LN")
    else:
        assert net.mixer_list == [MambaConfig(d_state=16, d_conv=4, expand=2)] * 2 and net.attn_only
        assert (net.positional_embedding_type, net.normalization_type) == ("none", "RMS")


def test_every_architecture_has_a_published_number():
    assert {architecture for architecture, _ in experiment.RUNS} == set(experiment.PUBLISHED)


@pytest.fixture
def written(evaluated, run_of, tmp_path, monkeypatch):
    """Results of two small runs, and what they were made from. Nothing is written beside the source."""
    monkeypatch.setattr(experiment, "HERE", tmp_path / "results")
    runs, evaluations = {}, {}
    for architecture, lr in (("mamba", "1e-2"), ("attention", "1e-3")):
        run = runs[architecture, lr] = run_of(architecture)
        original = evaluate_run(run, docs=40, procedure="original")
        evaluations[architecture, lr] = {"original": original, "unambiguous": evaluated[architecture][1]}
    mamba = evaluations["mamba", "1e-2"]["unambiguous"]
    value = (mamba.table.hook == "blocks.1.hook_resid_pre") & (mamba.table.position == "value")
    monkeypatch.setitem(
        mamba.__dict__, "table", mamba.table.assign(attrib=mamba.table.attrib.mask(value, -0.0001))
    )
    experiment.write_results(runs, evaluations)
    return tmp_path / "results", runs, evaluations


def test_results_have_a_row_a_run_and_procedure(written):
    folder, runs, evaluations = written
    rows = pd.read_csv(
        folder / "results.csv", dtype={"lr": str, "conv@value": str}, na_values=[], keep_default_na=False
    )
    assert rows[["architecture", "lr", "corruption"]].apply(tuple, axis=1).tolist() == [
        (*name, procedure) for name, by_procedure in evaluations.items() for procedure in by_procedure
    ]
    for row in rows.to_dict("records"):
        name = row["architecture"], row["lr"]
        found, run = evaluations[name][row["corruption"]], runs[name]
        assert row["accuracy"] == found.accuracy and row["steps"] == 12 and row["seed"] == 0
        assert row["minutes"] == pytest.approx(run.result()["seconds"] / 60, abs=0.05)
        assert row["published"] == experiment.PUBLISHED[name[0]]
        assert row["best heuristic"] == found.best_heuristic[1]
        assert row["gap"] == pytest.approx(found.gap, abs=5.1e-5)
        cells = found.table.set_index(["hook", "position"]).attrib
        for position in ("key", "value", "query"):
            expected = cells["blocks.1.hook_resid_pre", position]
            assert row[f"attrib@{position}"] == pytest.approx(expected, abs=5.1e-4)
        assert row["best conv"] == found.best_conv_cell
        assert row["mechanism"] == found.mechanism.name in MECHANISMS
        assert row["evidence"] == found.mechanism.evidence


def test_no_result_is_a_negative_zero(written):
    text = (written[0] / "results.csv").read_text()
    assert ",0.000," in text and "-0.000" not in text and ",-0.0," not in text


def test_curves_have_a_row_a_test_of_each_run(written):
    folder, runs, _ = written
    curves = pd.read_csv(folder / "curves.csv", dtype={"lr": str})
    assert list(curves.columns) == [
        "step",
        "loss",
        "test_accuracy",
        "test_loss",
        "test_prob",
        "architecture",
        "lr",
    ]
    for (architecture, lr), run in runs.items():
        part = curves[(curves.architecture == architecture) & (curves.lr == lr)]
        assert part.step.tolist() == [5, 10, 12]
        for column in ("loss", "test_accuracy", "test_loss", "test_prob"):
            assert part[column].tolist() == pytest.approx(run.metrics()[column].tolist(), rel=1e-5)


def test_pictures_are_written_and_nothing_else(written):
    folder, _, _ = written
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["attention-lr1e-3.png", "curves.csv", "curves.png", "mamba-lr1e-2.png", "results.csv"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))


def test_results_can_be_written_again_from_the_same_runs(written):
    folder, runs, evaluations = written
    before = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    experiment.write_results(runs, evaluations)
    assert {path.name: path.read_bytes() for path in folder.glob("*.csv")} == before


def test_a_run_is_evaluated_under_both_corruptions(tmp_path, monkeypatch):
    small: dict[tuple[str, str], TrainConfig] = {("mamba", "1e-2"): config("mamba")}
    monkeypatch.setattr(experiment, "config", lambda *name: small[name])
    found = experiment.train_and_evaluate("mamba", "1e-2", tmp_path)
    assert {procedure: e.procedure for procedure, e in found.items()} == {
        p: p for p in ("original", "unambiguous")
    }
    assert Evaluation.load(tmp_path / "evaluation.json").procedure == "unambiguous"
    assert Run(tmp_path).finished
