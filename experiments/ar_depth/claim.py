"""How many layers associative recall takes."""

from pathlib import Path

import pandas as pd

from experiments.claims.checks import COMES_CLOSE, FAILS, SUCCEEDS, best, every, where
from experiments.claims.definition import Check, Claim
from experiments.claims.figures import by_category
from experiments.claims.grids import PUBLISHED, recall_runs
from experiments.claims.recipes import PAPER_WIDTHS, Cell, cells

LAYERS = (1, 2, 3)
SMALL = ("Attention", "Mamba")


def grid(size: str) -> list[Cell]:
    found = []
    for width in {"tiny": (8,), "small": (64,), "paper": PAPER_WIDTHS}[size]:
        for architecture in PUBLISHED if size == "paper" else SMALL:
            for layers in LAYERS:
                runs = recall_runs(size, architecture, width, n_layers=layers)
                found += cells(runs, architecture=architecture, layers=layers, width=width)
    return found


def checks(table: pd.DataFrame) -> list[Check]:
    return [
        every(
            f"Mamba of one layer reaches {COMES_CLOSE:.0%} at some width",
            best(where(table, architecture="Mamba", layers=1)),
            "accuracy",
            lambda accuracy: accuracy >= COMES_CLOSE,
            percent=True,
        ),
        every(
            f"Attention of one layer stays below {FAILS:.0%}",
            best(where(table, architecture="Attention", layers=1)),
            "accuracy",
            lambda accuracy: accuracy < FAILS,
            percent=True,
        ),
        *(
            every(
                f"Attention of {layers} layers reaches {SUCCEEDS:.0%} at some width",
                best(where(table, architecture="Attention", layers=layers)),
                "accuracy",
                lambda accuracy: accuracy >= SUCCEEDS,
                percent=True,
            )
            for layers in (2, 3)
        ),
    ]


CLAIM = Claim(
    number=4,
    title="How many layers it takes",
    statement="One layer suffices for Mamba, and not for attention.",
    grid=grid,
    checks=checks,
    figures=lambda table: [by_category(table, "layers", "accuracy", "accuracy")],
    columns="accuracy published_accuracy heuristic value conv mechanism rate seeds runs".split(),
    folder=Path(__file__).parent,
)
