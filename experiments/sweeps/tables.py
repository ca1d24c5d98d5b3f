"""The numbers of many runs as four tables, which are kept when the runs are not.

runs.csv          one row a run
attributions.csv  one row a run, procedure of corruption, hook and position
taps.csv          one row a run, convolution, tap and position
curves.csv        one row a run and test during training
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.evaluation import Evaluation
from experiments.runs import Run
from experiments.sweeps.job import EVALUATION, PUBLISHED, finished
from hooked_ssm.saving import write_atomically

RUN = (
    "run seed lr steps selection_docs selection_accuracy dev_accuracy test_docs test_accuracy heuristic "
    "heuristic_accuracy published_gap gap mechanism evidence seconds torch config"
).split()
CELL = "run procedure hook position attrib low high restored".split()
TAP = "run hook tap position attrib low high".split()
CURVE = "run step loss test_accuracy".split()


@dataclass(frozen=True, eq=False)
class Tables:
    runs: pd.DataFrame
    attributions: pd.DataFrame
    taps: pd.DataFrame
    curves: pd.DataFrame

    @classmethod
    def empty(cls) -> "Tables":
        return cls(*(pd.DataFrame(columns=columns) for columns in (RUN, CELL, TAP, CURVE)))

    @classmethod
    def load(cls, folder: Path) -> "Tables":
        """The tables of a folder; empty ones where there are none."""
        empty = cls.empty()
        tables = {
            name: pd.read_csv(folder / f"{name}.csv") if (folder / f"{name}.csv").exists() else table
            for name, table in vars(empty).items()
        }
        return cls(**tables)

    def save(self, folder: Path) -> None:
        for name, table in vars(self).items():
            text = table.to_csv(index=False, float_format="%.5g")
            write_atomically(folder / f"{name}.csv", lambda path, text=text: path.write_text(text))

    def of(self, names: Iterable[str]) -> "Tables":
        """What they say of these runs."""
        wanted = set(names)
        return Tables(*(table[table.run.isin(wanted)] for table in vars(self).values()))

    def updated(self, other: "Tables") -> "Tables":
        """These and the other's runs; where both have a run, the other's numbers. Sorted by name."""
        new = set(other.runs.run)
        merged = []
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            parts = [part for part in (mine[~mine.run.isin(new)], theirs) if len(part)]
            table = pd.concat(parts, ignore_index=True) if parts else mine
            merged.append(table.sort_values("run", kind="stable", ignore_index=True))
        return Tables(*merged)


def gather(out: Path, names: Iterable[str]) -> Tables:
    """The tables of those of these runs under `out` that are finished."""
    runs, cells, taps, curves = [], [], [], []
    for name in dict.fromkeys(names):
        folder = out / name
        if not finished(folder):
            continue
        runs.append(json.loads((folder / "row.json").read_text()))
        for file in (PUBLISHED, EVALUATION):
            evaluation = Evaluation.load(folder / file)
            cells.append(evaluation.table.assign(run=name, procedure=evaluation.procedure))
        curves.append(Run(folder).metrics().assign(run=name))
        if (folder / "taps.json").exists():
            taps.append(pd.DataFrame(json.loads((folder / "taps.json").read_text())).assign(run=name))
    return Tables(
        pd.DataFrame(runs, columns=RUN), joined(cells, CELL), joined(taps, TAP), joined(curves, CURVE)
    )


def joined(parts: Sequence[pd.DataFrame], columns: Any) -> pd.DataFrame:
    """One below the other, with these columns."""
    return (
        pd.concat(parts, ignore_index=True).reindex(columns=columns)
        if parts
        else pd.DataFrame(columns=columns)
    )
