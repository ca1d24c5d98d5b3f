"""hooked-ssm: train models on recall tasks, and find by intervention how they do it."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hooked_ssm import zoo
from hooked_ssm.config import check_known

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()

Architecture = Enum("Architecture", {name: name for name in zoo.PRESETS}, type=str)


class Half(str, Enum):
    """One half of a pair."""

    KEY = "key"
    VALUE = "value"


class Procedure(str, Enum):
    UNAMBIGUOUS = "unambiguous"
    ORIGINAL = "original"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for runs, heat maps and the report.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Attention and Mamba only.")] = False,
) -> None:
    """Train every architecture of the paper on associative recall, small; say how each of them recalls."""
    from experiments.demo import run_demo

    run_demo(out, console, quick=quick)


@app.command()
def train(
    arch: Annotated[Architecture, typer.Argument(help="A preset of hooked_ssm.zoo.")],  # type: ignore
    out: Annotated[Path, typer.Option(help="Folder of the run. A run that was cut off goes on.")],
    d_model: Annotated[int, typer.Option(help="Width of the residual stream.")] = 64,
    n_layers: Annotated[int, typer.Option(help="Number of blocks.")] = 2,
    model: Annotated[
        list[str] | None, typer.Option(help="An option of the preset, as in d_conv=0; may be repeated.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="As the paper trained it, not as it was published.")
    ] = False,
    task: Annotated[str, typer.Option(help="What is learned: the name of a task.")] = "associative_recall",
    setting: Annotated[
        list[str] | None, typer.Option(help="A setting of the task, as in n_keys=64; may be repeated.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 50_016,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Documents a step.")] = 32,
    n_train: Annotated[int, typer.Option(help="Fixed documents; 0 for ones that never repeat.")] = 100_032,
    eval_every: Annotated[int, typer.Option(help="Steps between tests.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of weights and documents.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads; by default as many as torch likes.")] = None,
) -> None:
    """Train one model on one task. The defaults are the paper's associative recall and its schedule."""
    from dataclasses import replace

    from experiments import training
    from experiments.runs import TrainConfig
    from tasks import AssociativeRecall, AssociativeTreecall, Task

    set_threads(threads)
    learned = Task.from_dict({"task": task, **assignments(setting, "--setting")})
    tested = None
    if isinstance(learned, AssociativeRecall) and learned.n_queries > 1:
        tested = replace(learned, n_queries=1)
    presets = zoo.paper.PRESETS if paper else zoo.PRESETS
    check_known([arch.value], set(presets), "preset of hooked_ssm.zoo.paper" if paper else "preset")
    options = {"n_ctx": max(1024, learned.n_ctx), **assignments(model, "--model")}
    cfg = TrainConfig(
        task=learned,
        eval_task=tested,
        model=presets[arch.value](d_model=d_model, n_layers=n_layers, d_vocab=learned.d_vocab, **options),
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        n_train=n_train or None,
        eval_every=eval_every,
        checkpoint_every=eval_every,
        seed=seed,
    )
    if isinstance(learned, AssociativeTreecall):
        shares = ", ".join(f"{name} {share:.1%}" for name, share in learned.rejections().items())
        say(f"Of the sentences drawn: {shares}".replace("_", " "))
    run = training.train(cfg, out)
    result = run.result()
    accuracy, loss = f"{result['test_accuracy']:.1%}", f"{result['test_loss']:.3f}"
    console.print(f"accuracy {accuracy}, loss {loss} on held-out documents")
    say(f"Run: {run.folder.resolve()}. Next: hooked-ssm evaluate {run.folder}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    docs: Annotated[int, typer.Option(help="Held-out documents.")] = 320,
    site: Annotated[
        Half, typer.Option(help="What is corrupted: the item asked about, or its answer.")
    ] = Half.KEY,
    procedure: Annotated[Procedure, typer.Option(help="How it is corrupted.")] = Procedure.UNAMBIGUOUS,
    component: Annotated[
        list[str] | None, typer.Option(help="A further block-level hook to intervene on; may be repeated.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; by default as many as torch likes.")] = None,
) -> None:
    """Intervene on a trained model: attributions by hook and position, mechanism, heat map, report."""
    from experiments.evaluation import evaluate_run
    from experiments.report import entry, write_report
    from experiments.runs import Run
    from experiments.tables import DIMENSIONS, summary_table
    from hooked_ssm.plotting import fixed

    set_threads(threads)
    finished = Run(run)
    evaluation = evaluate_run(
        finished, docs=docs, site=site.value, procedure=procedure.value, components=component or ()
    )
    table = Table("hook", "position", "Attrib", "95 % interval", "restored p")
    for row in evaluation.table.to_dict("records"):
        attrib, low, high, restored = (fixed(row[name], 3) for name in ("attrib", "low", "high", "restored"))
        table.add_row(row["hook"], row["position"], attrib, f"{low} .. {high}", restored)
    console.print(table)
    for by in dict.fromkeys(part.by for part in evaluation.parts):
        some = {part.value: part for part in evaluation.parts if part.by == by}
        console.print(summary_table(f"by {DIMENSIONS[by]}", some, first=by))
    rule, score = evaluation.best_heuristic
    console.print(
        f"accuracy {evaluation.accuracy:.1%} (best heuristic {rule}: {score:.1%}), {docs} documents"
    )
    console.print(f"[bold]{evaluation.mechanism.name}[/bold]: {escape(evaluation.mechanism.evidence)}")
    name = run.resolve().name
    page = write_report(name, "One run, evaluated.", [entry(name, finished, evaluation)], run)
    say(f"Report: {page.resolve()}")


class Size(str, Enum):
    """How much of a grid."""

    TINY = "tiny"
    SMALL = "small"
    PAPER = "paper"


class Log(str, Enum):
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


@app.command()
def sweep(
    claims: Annotated[
        list[Path], typer.Argument(help="Folders with a claim.py, such as experiments/ar_depth.")
    ],
    size: Annotated[
        Size, typer.Option(help="The task and the grid: minutes, hours, or as published.")
    ] = Size.SMALL,
    out: Annotated[Path, typer.Option(help="Folder of the runs, shared by all sweeps.")] = Path(
        "runs/sweeps"
    ),
    workers: Annotated[
        int | None, typer.Option(help="Processes, one thread each. By default the GPU, or one process.")
    ] = None,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to use instead.")] = None,
    log: Annotated[Log | None, typer.Option(help="Where else to send the curves.")] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Folder of tables to bring up to date with the finished runs.")
    ] = None,
) -> None:
    """Train and evaluate every run of some claims' grids. Finished runs are kept, cut ones go on."""
    import torch

    from experiments.claims.definition import load_claim
    from experiments.claims.recipes import DOCS
    from experiments.sweeps.job import Job
    from experiments.sweeps.local import LocalWorkers
    from experiments.sweeps.logs import check_log
    from experiments.sweeps.on_gpu import GpuWorkers
    from experiments.sweeps.on_ray import RayWorkers
    from experiments.sweeps.sweep import sweep as do
    from experiments.sweeps.tables import Tables, gather

    chosen = None if log is None else log.value
    check_log(chosen)
    configs = [config for folder in claims for config in load_claim(folder).configs(size.value)]
    configs.sort(key=lambda config: config.seed)  # every condition is tried once before any is tried again
    jobs = [Job(config, docs=DOCS[size.value], log=chosen) for config in configs]
    out.mkdir(parents=True, exist_ok=True)
    if ray is not None:
        hands = RayWorkers(ray, out)
    elif workers is None and torch.cuda.is_available():
        hands = GpuWorkers(out)
    else:
        hands = LocalWorkers(1 if workers is None else workers, out)
    with hands:
        outcome = do(jobs, out, hands, console)
    if tables is not None:
        Tables.load(tables).updated(gather(out, [job.name for job in jobs])).save(tables)
        say(f"Tables: {tables.resolve()}")
    for name, error in outcome.failed.items():
        say(f"{name} failed: {error.strip()}")
    counts = f"{len(outcome.kept)} kept, {len(outcome.done)} done, {len(outcome.failed)} failed"
    say(f"{counts}. Runs: {out.resolve()}")
    if outcome.failed:
        raise SystemExit(1)


@app.command()
def report(
    runs: Annotated[Path, typer.Argument(help="Folder of the runs of sweeps.")] = Path("runs/sweeps"),
    out: Annotated[Path, typer.Option(help="Folder of the page and the figures.")] = Path("runs/report"),
    kept: Annotated[
        bool,
        typer.Option(help="Whether the tables in experiments/results stand in for runs that are not there."),
    ] = True,
) -> None:
    """One page that says what the runs say of each claim of the paper, and its figures as PNG files."""
    from experiments.claims.definition import all_claims
    from experiments.claims.html import tables_of, write_page

    claims = all_claims()
    page = write_page(claims, tables_of(claims, runs, kept=kept), out)
    say(f"Report: {page.resolve()}")


def assignments(given: list[str] | None, option: str) -> dict[str, Any]:
    """["n_keys=64", "query=value"] as {"n_keys": 64, "query": "value"}: values are JSON, or else text."""
    values = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not equals:
            raise ValueError(f"{option} wants name=value, got {each!r}.")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return values


def say(text: str) -> None:
    """Print a line as it is, however long: it holds a path to copy."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}.")
        torch.set_num_threads(threads)


def main() -> None:
    """The command line. What the user got wrong is one line on standard error, and exit code 2."""
    try:
        app(standalone_mode=True)
    except (ValueError, TypeError, OSError, KeyError, ModuleNotFoundError, FloatingPointError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        line = " ".join(str(message).split())
        Console(stderr=True).print(f"[red]error:[/red] {escape(line)}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from error
