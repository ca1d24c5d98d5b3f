"""The main job in minutes: small models learn associative recall; interventions say how each does it."""

import multiprocessing
import os
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from experiments.evaluation import Evaluation, evaluate_run
from experiments.report import entry, write_report
from experiments.runs import Run, TrainConfig
from experiments.tables import summary_table
from experiments.training import progress_bar, train
from hooked_ssm import zoo
from tasks import AssociativeRecall

TASK = AssociativeRecall(n_keys=32, n_values=32, n_pairs=4)
INTRO = (
    f"Associative recall with {TASK.n_pairs} pairs of {TASK.n_keys} keys and {TASK.n_values} values, one "
    "query a document. Training never repeats a document."
)


QUICK = ("Attention", "Mamba", "Mamba without convolution")


def demo_configs() -> dict[str, TrainConfig]:
    """The models of the demo by name, each with a recipe that solves its task, if it can, in minutes.

    Initial embeddings have unit norm and linear maps PyTorch's scale: with the paper's small ones attention
    takes longer to leave the plateau where it answers any value of the document. Those with a recurrence want
    a large rate.
    """
    size = {"d_model": 64, "d_vocab": TASK.d_vocab, "n_ctx": 64, "linear_std": None, "embed_std": 0.125}
    common = {
        "task": TASK,
        "n_train": None,
        "batch_size": 128,
        "eval_every": 50,
        "checkpoint_every": 250,
        "stop_at_accuracy": 0.99,
    }
    small = {"steps": 3000, "lr": 1e-3, **common}
    middle = {"steps": 3000, "lr": 3e-3, **common}
    large = {"steps": 2000, "lr": 1e-2, "warmup": 0.075, **common}
    return {
        "Attention": TrainConfig(model=zoo.attention(**size), **small),
        "Based": TrainConfig(model=zoo.based(**size), **middle),
        "Mamba": TrainConfig(model=zoo.mamba(**size), **large),
        "Mamba without convolution": TrainConfig(model=zoo.mamba(d_conv=0, **size), **large),
        "DeltaNet": TrainConfig(model=zoo.delta_net(**size), **middle),
        "H3": TrainConfig(model=zoo.h3(**size), **middle),
        "Hyena": TrainConfig(model=zoo.hyena(**size), **middle),
    }


def run_demo(folder: Path, console: Console, *, quick: bool = False) -> Path:
    """Train what is not trained yet, evaluate, print the table, write the report; return its path.

    quick: only the models named in `QUICK`.
    """
    configs = {name: cfg for name, cfg in demo_configs().items() if not quick or name in QUICK}
    runs = {name: folder / name.lower().replace(" ", "-") for name in configs}
    started = time.perf_counter()
    evaluations = train_and_evaluate(configs, runs)
    console.print(summary_table("How do they recall?", evaluations))
    for name, evaluation in evaluations.items():
        found = evaluation.mechanism
        console.print(f"[bold]{name}[/bold]: {found.name}. {escape(found.evidence)}")
    entries = [entry(name, Run(runs[name]), evaluation) for name, evaluation in evaluations.items()]
    page = write_report("How do they recall?", INTRO, entries, folder)
    lines = f"\n{time.perf_counter() - started:.0f} s. Heat maps: {folder}/*.png\nReport: {page.resolve()}"
    console.print(lines, soft_wrap=True, markup=False, highlight=False)
    return page


def train_and_evaluate(
    configs: dict[str, TrainConfig], runs: dict[str, Path], *, docs: int = 320
) -> dict[str, Evaluation]:
    """All runs, as many at a time as there are processors, one thread each, with a bar for every run."""
    context = multiprocessing.get_context("spawn")
    workers = min(len(configs), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=context) as pool, progress_bar() as bars:
        jobs: dict[str, Future[Evaluation]] = {}
        shown = {}
        for name, cfg in configs.items():
            jobs[name] = pool.submit(train_and_evaluate_one, cfg, runs[name], docs)
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


def train_and_evaluate_one(cfg: TrainConfig, folder: Path, docs: int) -> Evaluation:
    torch.set_num_threads(1)
    run = train(cfg, folder, progress=False)
    kept = folder / "evaluation.json"
    return Evaluation.load(kept) if kept.exists() else evaluate_run(run, docs=docs)
