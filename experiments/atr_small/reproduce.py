"""Associative treecall, small, on a CPU: `python -m experiments.atr_small`.

The paper's easy setting (at most 5 symbols a rule, 20 terminals), bodies of at most 64 words, documents that
never repeat, and test bodies that training never sees. Attention, Mamba, and Mamba without its convolution,
d_model 64, two layers. Writes results.csv, attributions.csv and a heat map a model beside this file. Finished
runs in --out are kept, cut ones go on.
"""

import argparse
from pathlib import Path

import pandas as pd
from rich.console import Console

from experiments.demo import train_and_evaluate
from experiments.evaluation import Evaluation, Scores
from experiments.report import attribution_map
from experiments.runs import TrainConfig
from experiments.tables import DIMENSIONS, summary_table
from hooked_ssm import zoo
from hooked_ssm.saving import write_atomically
from tasks import AssociativeTreecall

HERE = Path(__file__).parent
TASK = AssociativeTreecall.preset("pcfg_easy", max_length=64)
STEPS = 6000


def configs() -> dict[str, TrainConfig]:
    size = {"d_model": 64, "d_vocab": TASK.d_vocab, "n_ctx": 128, "linear_std": None, "embed_std": 0.125}
    common = {"task": TASK, "steps": STEPS, "batch_size": 64, "n_train": None, "n_test": 640}
    common |= {"eval_every": 250, "checkpoint_every": 500}
    return {
        "attention": TrainConfig(model=zoo.attention(**size), lr=1e-3, **common),
        "mamba": TrainConfig(model=zoo.mamba(**size), lr=3e-3, **common),
        "mamba-without-convolution": TrainConfig(model=zoo.mamba(d_conv=0, **size), lr=3e-3, **common),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/atr_small"), help="folder of the runs")
    args = parser.parse_args()
    asked = configs()
    evaluations = train_and_evaluate(asked, {name: args.out / name for name in asked}, docs=2000)
    console = Console()
    console.print(summary_table("Associative treecall, easy", evaluations))
    for name, evaluation in evaluations.items():
        for by, what in DIMENSIONS.items():
            some = {part.value: part for part in evaluation.parts if part.by == by}
            console.print(summary_table(f"{name}, by {what}", some, first=by))
    write_results(evaluations)


def write_results(evaluations: dict[str, Evaluation]) -> None:
    """results.csv: a row a model and group of documents. attributions.csv: each of their cells. Heat maps."""
    results, cells = [], []
    for name, evaluation in evaluations.items():
        groups: list[tuple[str, str, Scores]] = [("all", "", evaluation)]
        groups += [(part.by, part.value, part) for part in evaluation.parts]
        for by, value, scores in groups:
            about = {"model": name, "by": by, "value": value}
            rule, score = scores.best_heuristic
            numbers = {"docs": scores.docs, "accuracy": scores.accuracy, "gap": scores.gap}
            results.append(about | numbers | {"best heuristic": rule, "its accuracy": score})
            cells += [about | row for row in scores.table.to_dict("records")]
        picture = attribution_map(name, evaluation).png()
        write_atomically(HERE / f"{name}.png", lambda path, data=picture: path.write_bytes(data))
    for file, rows in (("results.csv", results), ("attributions.csv", cells)):
        text = pd.DataFrame(rows).to_csv(index=False, float_format="%.4g")
        write_atomically(HERE / file, lambda path, text=text: path.write_text(text))
