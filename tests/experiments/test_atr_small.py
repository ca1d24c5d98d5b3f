"""The experiment on associative treecall: its configurations, and its tables from runs of a few steps."""

import pandas as pd

from experiments.atr_small import reproduce as experiment
from experiments.evaluation import evaluate_run
from experiments.training import train
from tasks import AssociativeTreecall

from .small import config, model


def test_the_configs_are_what_the_page_says():
    configs = experiment.configs()
    assert list(configs) == ["attention", "mamba", "mamba-without-convolution"]
    for cfg in configs.values():
        assert cfg.task == AssociativeTreecall.preset("pcfg_easy", max_length=64)
        assert (cfg.steps, cfg.batch_size, cfg.n_train, cfg.seed) == (6000, 64, None, 0)
        assert (cfg.model.d_model, cfg.model.n_layers) == (64, 2) and cfg.model.n_ctx >= cfg.task.n_ctx
    assert [cfg.lr for cfg in configs.values()] == [1e-3, 3e-3, 3e-3]


def test_the_tables_have_every_group_of_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "HERE", tmp_path / "results")
    (tmp_path / "results").mkdir()
    task = AssociativeTreecall(n_terminals=60, n_nonterminals=10, max_length=40)
    cfg = config(task=task, model=model(d_vocab=task.d_vocab, n_ctx=task.n_ctx))
    found = evaluate_run(train(cfg, tmp_path / "run", progress=False), docs=60)
    experiment.write_results({"attention": found})
    results = pd.read_csv(tmp_path / "results" / "results.csv").fillna({"value": ""})
    assert list(results.by) == ["all", *(part.by for part in found.parts)]
    assert list(results.docs) == [60, *(part.docs for part in found.parts)]
    assert abs(results.accuracy[0] - found.accuracy) < 1e-3
    cells = pd.read_csv(tmp_path / "results" / "attributions.csv")
    assert len(cells) == (1 + len(found.parts)) * len(found.table)
    assert (tmp_path / "results" / "attention.png").read_bytes().startswith(b"\x89PNG")
