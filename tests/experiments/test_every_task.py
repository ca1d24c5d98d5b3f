"""A model of every task is trained and evaluated by the same commands."""

import pytest

from experiments.evaluation import POSITIONS, evaluate_run
from experiments.training import train
from tasks import AssociativeTreecall, Induction, MultiQueryAssociativeRecall, SelectiveCopying, Task

from .small import TASK, config, model

TASKS = [
    TASK,
    AssociativeTreecall(n_terminals=60, n_nonterminals=10, max_length=40),
    Induction(n_tokens=12, length=6, n_repeated=4),
    MultiQueryAssociativeRecall(n_keys=6, n_values=6, n_pairs=2, length=12),
    SelectiveCopying(n_tokens=6, n_copied=3, length=8),
]


def test_no_task_is_left_out():
    own = {name for name, task in Task.registry.items() if task.__module__.startswith("tasks.")}
    assert own == {task.name for task in TASKS}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_an_evaluation_of_every_task_attributes_the_key_to_the_key(task, tmp_path):
    cfg = config(task=task, model=model(d_vocab=task.d_vocab, n_ctx=task.n_ctx))
    run = train(cfg, tmp_path, progress=False)
    assert set(run.result()["heuristics"]) == set(task.heuristics(task.sample(1, 0)))
    found = evaluate_run(run, docs=40, procedure="original")  # which changes no other token than the key
    cells = found.table.set_index(["hook", "position"]).attrib
    assert set(cells.index.unique("position")) == {*POSITIONS, "rest"}
    assert cells["blocks.0.hook_resid_pre", "key"] == pytest.approx(1, abs=1e-2)
    assert cells["blocks.0.hook_resid_pre", "divider"] == pytest.approx(0, abs=1e-2)
