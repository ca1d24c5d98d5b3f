"""The main job in minutes: three models learn associative recall; interventions say how each does it."""

import multiprocessing
import os
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.evaluation import Evaluation, evaluate_run
from experiments.report import entry, write_report
from experiments.runs import Run, TrainConfig
from experiments.training import progress_bar, train
from hooked_ssm import zoo
from tasks import AssociativeRecall

TASK = AssociativeRecall(n_keys=32, n_values=32, n_pairs=4)
INTRO = (
    f"Associative recall with {TASK.n_pairs} pairs of {TASK.n_keys} keys and {TASK.n_values} values, one "
    "query a document. Training never repeats a document."
)


def demo_configs() -> dict[str, TrainConfig]:
    """The models of the demo by name, each with a recipe that solves its task, if it can, in two minutes.

    Initial embeddings have unit norm and linear maps PyTorch's scale: with the paper's small ones attention
    takes longer to leave the plateau where it answers any value of the document. Mamba wants a large rate.
    """
    size = {"d_model": 64, "d_vocab": TASK.d_vocab, "n_ctx": 64, "linear_std": None, "embed_std": 0.125}
    common = {
        "task": TASK,
        "n_train": None,
        "eval_every": 50,
        "checkpoint_every": 250,
        "stop_at_accuracy": 0.99,
    }
    mamba_like = {"steps": 2000, "lr": 1e-2, "warmup": 0.075, "batch_size": 128, **common}
    return {
        "Attention": TrainConfig(model=zoo.attention(**size), steps=3000, lr=1e-3, batch_size=128, **common),
        "Mamba": TrainConfig(model=zoo.mamba(**size), **mamba_like),
        "Mamba without convolution": TrainConfig(model=zoo.mamba(d_conv=0, **size), **mamba_like),
    }


def run_demo(folder: Path, console: Console) -> Path:
    """Train what is not trained yet, evaluate, print the table, write the report; return its path."""
    configs = demo_configs()
    runs = {name: folder / name.lower().replace(" ", "-") for name in configs}
    started = time.perf_counter()
    evaluations = train_and_evaluate(configs, runs)
    console.print(summary_table(evaluations))
    for name, evaluation in evaluations.items():
        found = evaluation.mechanism
        console.print(f"[bold]{name}[/bold]: {found.name}. {escape(found.evidence)}")
    entries = [entry(name, Run(runs[name]), evaluation) for name, evaluation in evaluations.items()]
    page = write_report("How do they recall?", INTRO, entries, folder)
    lines = f"\n{time.perf_counter() - started:.0f} s. Heat maps: {folder}/*.png\nReport: {page.resolve()}"
    console.print(lines, soft_wrap=True, markup=False, highlight=False)
    return page


def train_and_evaluate(configs: dict[str, TrainConfig], runs: dict[str, Path]) -> dict[str, Evaluation]:
    """All runs, as many at a time as there are processors, one thread each, with a bar for every run."""
    context = multiprocessing.get_context("spawn")
    workers = min(len(configs), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=context) as pool, progress_bar() as bars:
        jobs: dict[str, Future[Evaluation]] = {}
        shown = {}
        for name, cfg in configs.items():
            jobs[name] = pool.submit(train_and_evaluate_one, cfg, runs[name])
            shown[name] = bars.add_task(name, total=cfg.steps, loss=float("nan"), accuracy=float("nan"))
        while not all(job.done() for job in jobs.values()):
            for name, job in jobs.items():
                show_progress(bars, shown[name], Run(runs[name]), job.done())
            time.sleep(0.3)
        for name in jobs:
            show_progress(bars, shown[name], Run(runs[name]), True)
    return {name: job.result() for name, job in jobs.items()}


def show_progress(bars, shown, run: Run, done: bool) -> None:
    metrics = run.metrics()
    if len(metrics):
        last = metrics.iloc[-1]
        total = {"total": last.step} if done else {}
        bars.update(shown, completed=last.step, loss=last.loss, accuracy=last.test_accuracy, **total)


def train_and_evaluate_one(cfg: TrainConfig, folder: Path) -> Evaluation:
    torch.set_num_threads(1)
    run = train(cfg, folder, progress=False)
    kept = folder / "evaluation.json"
    return Evaluation.load(kept) if kept.exists() else evaluate_run(run)


def summary_table(evaluations: dict[str, Evaluation]) -> Table:
    """Accuracy, heuristics, attributions at the second block's input, and the mechanism of every model."""
    table = Table(title="How do they recall?", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", min_width=11)
    for number in ("accuracy", "heuristic", "@ key", "@ value", "@ query", "best conv"):
        table.add_column(number, justify="right")
    table.add_column("mechanism", min_width=9)
    for name, evaluation in evaluations.items():
        table.add_row(
            name,
            f"{evaluation.accuracy:.1%}",
            f"{evaluation.best_heuristic[1]:.1%}",
            *(evaluation.cell("blocks.1.hook_resid_pre", position) for position in ("key", "value", "query")),
            evaluation.best_conv_cell,
            evaluation.mechanism.name,
        )
    table.caption = (
        "heuristic: the best simple rule. @: Attrib of the second block's input. best conv: the largest "
        "Attrib of a convolution's output at the value or after it. 1 restores all."
    )
    return table
