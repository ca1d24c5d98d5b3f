"""The paper's associative recall at d_model 64 on a CPU: `python -m experiments.ar_paper_size`.

Trains attention and Mamba at two learning rates each (the published schedule: 50,016 steps of 32 documents
from a fixed set of 100,032), evaluates each by interchange, and writes results.csv, curves.csv and curves.png
beside this file; with run names, only those. Finished runs in --out are kept, cut ones go on.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from experiments.evaluation import Evaluation, evaluate_run
from experiments.report import attribution_map
from experiments.runs import Run, TrainConfig
from experiments.training import train
from hooked_ssm import plotting, zoo
from hooked_ssm.saving import write_atomically
from tasks import AssociativeRecall

HERE = Path(__file__).parent
RUNS = [("mamba", "3e-3"), ("mamba", "1e-2"), ("attention", "3e-4"), ("attention", "1e-3")]
PUBLISHED = {"attention": 1.0, "mamba": 0.8062}  # best of seven learning rates, 320 test documents


def config(architecture: str, lr: str) -> TrainConfig:
    task = AssociativeRecall()
    model = zoo.PRESETS[architecture](d_model=64, n_layers=2, d_vocab=task.d_vocab)
    return TrainConfig(task=task, model=model, steps=50_016, lr=float(lr))


def train_and_evaluate(architecture: str, lr: str, folder: Path) -> dict[str, Evaluation]:
    """The evaluation under the unambiguous corruption and under the published one."""
    torch.set_num_threads(1)
    run = train(config(architecture, lr), folder, progress=False)
    return {procedure: evaluate_run(run, procedure=procedure) for procedure in ("original", "unambiguous")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = {"-lr".join(run): run for run in RUNS}
    parser.add_argument("runs", nargs="*", default=list(names), metavar="RUN", help=f"of {', '.join(names)}")
    parser.add_argument("--out", type=Path, default=Path("runs/ar_paper_size"), help="folder of the runs")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    args = parser.parse_args()
    if unknown := set(args.runs) - names.keys():
        parser.error(f"no run named {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    folders = {names[name]: args.out / name for name in args.runs}
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        jobs = {name: pool.submit(train_and_evaluate, *name, folder) for name, folder in folders.items()}
        evaluations = {name: job.result() for name, job in jobs.items()}
    write_results({name: Run(folder) for name, folder in folders.items()}, evaluations)


def write_results(
    runs: dict[tuple[str, str], Run], evaluations: dict[tuple[str, str], dict[str, Evaluation]]
) -> None:
    """results.csv: one row a run and procedure. curves.csv: accuracy by step. curves.png, one map a run."""
    rows, curves, lines = [], [], {}
    for (architecture, lr), by_procedure in evaluations.items():
        run = runs[architecture, lr]
        result, metrics = run.result(), run.metrics()
        for procedure, e in by_procedure.items():
            cells = e.table.set_index(["hook", "position"]).attrib
            attribs = {p: cells["blocks.1.hook_resid_pre", p] for p in ("key", "value", "query")}
            rows.append(
                {
                    "architecture": architecture,
                    "lr": lr,
                    "seed": run.config().seed,
                    "steps": int(result["step"]),
                    "minutes": round(result["seconds"] / 60, 1),
                    "accuracy": e.accuracy,
                    "published": PUBLISHED[architecture],
                    "best heuristic": e.best_heuristic[1],
                    "corruption": procedure,
                    "gap": round(e.gap, 4),
                    **{f"attrib@{p}": plotting.fixed(attrib, 3) for p, attrib in attribs.items()},
                    "best conv": e.best_conv_cell,
                    "mechanism": e.mechanism.name,
                    "evidence": e.mechanism.evidence,
                }
            )
        name = f"{architecture}, lr {lr}"
        lines[name] = (metrics.step.tolist(), metrics.test_accuracy.tolist())
        curves.append(metrics.assign(architecture=architecture, lr=lr).drop(columns="seconds"))
        heatmap = attribution_map(name, by_procedure["unambiguous"]).png()
        write_atomically(
            HERE / f"{architecture}-lr{lr}.png", lambda path, data=heatmap: path.write_bytes(data)
        )
    curve = pd.concat(curves)
    write_atomically(HERE / "results.csv", lambda path: pd.DataFrame(rows).to_csv(path, index=False))
    write_atomically(HERE / "curves.csv", lambda path: curve.to_csv(path, index=False, float_format="%.6g"))
    levels = {f"published {name}": value for name, value in PUBLISHED.items()}
    picture = plotting.curves(lines, y_label="accuracy, 320 test documents", levels=levels).png()
    write_atomically(HERE / "curves.png", lambda path: path.write_bytes(picture))
