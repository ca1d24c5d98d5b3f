"""Tables of runs that nobody made, for grids that somebody might."""

import json

import pandas as pd

from experiments.claims.recipes import Cell
from experiments.sweeps.naming import essentials
from experiments.sweeps.tables import CELL, CURVE, RUN, TAP, Tables

POSITIONS = ("key", "value", "value+1", "value+2", "query")


def tables(cells: list[Cell], accuracy, *, attribs=None, convs=None, taps=None, **more) -> Tables:
    """accuracy(cell): of the run on selection and on test documents, or None for no run. attribs, convs:
    Attrib of the last block's input and of its convolution by position. taps: by (tap, position)."""
    runs, rows, tap_rows = [], [], []
    for one in cells:
        found = accuracy(one)
        if found is None:
            continue
        selection, test = found
        name = one.name
        row = {
            "run": name,
            "seed": one.config.seed,
            "lr": one.config.lr,
            "steps": one.config.steps,
            "selection_docs": 320,
            "selection_accuracy": selection,
            "dev_accuracy": selection,
            "test_docs": 1000,
            "test_accuracy": test,
            "heuristic": "first_candidate",
            "heuristic_accuracy": 0.25,
            "published_gap": 0.5,
            "gap": 0.5,
            "mechanism": "mixed",
            "evidence": "none <here>",
            "seconds": 1.0,
            "torch": "2",
            "config": json.dumps(essentials(one.config)),
        }
        runs.append(row | more)
        for hook, values in (("hook_resid_pre", attribs), ("hook_conv", convs)):
            for procedure in ("original", "unambiguous"):
                for position, attrib in (values or {}).items():
                    about = {
                        "run": name,
                        "procedure": procedure,
                        "hook": f"blocks.1.{hook}",
                        "position": position,
                    }
                    ends = {"attrib": attrib, "low": attrib - 0.1, "high": attrib + 0.1, "restored": 0.5}
                    rows.append(about | ends)
        for (tap, position), attrib in (taps or {}).items():
            about = {"run": name, "hook": "blocks.0.hook_conv_taps", "tap": tap, "position": position}
            tap_rows.append(about | {"attrib": attrib, "low": attrib, "high": attrib})
    curves = [
        {"run": row["run"], "step": step, "loss": 1.0, "test_accuracy": 0.5}
        for row in runs
        for step in (1, 2)
    ]
    return Tables(
        pd.DataFrame(runs, columns=RUN),
        pd.DataFrame(rows, columns=CELL),
        pd.DataFrame(tap_rows, columns=TAP),
        pd.DataFrame(curves, columns=CURVE),
    )
