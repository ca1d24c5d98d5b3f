"""hooked-ssm: train models on recall tasks, and find by intervention how they do it."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hooked_ssm import zoo

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
) -> None:
    """Train attention, Mamba, and Mamba without convolution on associative recall; say how each recalls."""
    from experiments.demo import run_demo

    run_demo(out, console)


@app.command()
def train(
    arch: Annotated[Architecture, typer.Argument(help="A preset of hooked_ssm.zoo.")],  # type: ignore
    out: Annotated[Path, typer.Option(help="Folder of the run. A run that was cut off goes on.")],
    d_model: Annotated[int, typer.Option(help="Width of the residual stream.")] = 64,
    n_layers: Annotated[int, typer.Option(help="Number of blocks.")] = 2,
    d_conv: Annotated[int | None, typer.Option(help="Width of the short convolution; 0 removes it.")] = None,
    keys: Annotated[int, typer.Option(help="Number of keys.")] = 4096,
    values: Annotated[int, typer.Option(help="Number of values.")] = 4096,
    pairs: Annotated[int, typer.Option(help="Pairs a document.")] = 16,
    queries: Annotated[int, typer.Option(help="Supervised queries a training document.")] = 1,
    query: Annotated[Half, typer.Option(help="Which half of a pair is the query.")] = Half.KEY,
    held_out: Annotated[float, typer.Option(help="Share of key-value pairs kept for the test.")] = 0.0,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 50_016,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Documents a step.")] = 32,
    n_train: Annotated[int, typer.Option(help="Fixed documents; 0 for ones that never repeat.")] = 100_032,
    eval_every: Annotated[int, typer.Option(help="Steps between tests.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of weights and documents.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads; by default as many as torch likes.")] = None,
) -> None:
    """Train one model on associative recall. The defaults are the paper's task and schedule."""
    from dataclasses import replace

    from experiments import training
    from experiments.runs import TrainConfig
    from tasks import AssociativeRecall

    set_threads(threads)
    task = AssociativeRecall(
        n_keys=keys, n_values=values, n_pairs=pairs, n_queries=queries, query=query.value, held_out=held_out
    )
    options: dict[str, Any] = {} if d_conv is None else {"d_conv": d_conv}
    model = zoo.PRESETS[arch.value](d_model=d_model, n_layers=n_layers, d_vocab=task.d_vocab, **options)
    cfg = TrainConfig(
        task=task,
        eval_task=replace(task, n_queries=1) if queries > 1 else None,
        model=model,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        n_train=n_train or None,
        eval_every=eval_every,
        checkpoint_every=eval_every,
        seed=seed,
    )
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
    rule, score = evaluation.best_heuristic
    console.print(
        f"accuracy {evaluation.accuracy:.1%} (best heuristic {rule}: {score:.1%}), {docs} documents"
    )
    console.print(f"[bold]{evaluation.mechanism.name}[/bold]: {escape(evaluation.mechanism.evidence)}")
    name = run.resolve().name
    page = write_report(name, "One run, evaluated.", [entry(name, finished, evaluation)], run)
    say(f"Report: {page.resolve()}")


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
    except (ValueError, TypeError, OSError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        line = " ".join(str(message).split())
        Console(stderr=True).print(f"[red]error:[/red] {escape(line)}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from error
