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
            published="96.25 % at width 256, where two layers have 91.25 % (appendix D.2)",
            percent=True,
        ),
        every(
            f"Attention of one layer stays below {FAILS:.0%}",
            best(where(table, architecture="Attention", layers=1)),
            "accuracy",
            lambda accuracy: accuracy < FAILS,
            published="fails (appendix D.2)",
            percent=True,
        ),
        *(
            every(
                f"Attention of {layers} layers reaches {SUCCEEDS:.0%} at some width",
                best(where(table, architecture="Attention", layers=layers)),
                "accuracy",
                lambda accuracy: accuracy >= SUCCEEDS,
                published=said,
                percent=True,
            )
            for layers, said in (
                (2, "100 % from width 32 on (section 5.1)"),
                (3, "about as with two layers (appendix D.3)"),
            )
        ),
    ]


CLAIM = Claim(
    number=4,
    title="How many layers it takes",
    statement="One layer suffices for Mamba, and not for attention.",
    grid=grid,
    checks=checks,
    figures=lambda table: [by_category(table, "layers", "accuracy", "accuracy")],
    columns=(
        "accuracy published_accuracy paper_accuracy heuristic value conv mechanism rate seeds runs"
    ).split(),
    published="Of one and three layers the paper gives two numbers and words (appendices D.2 and D.3); the "
    "rest is only drawn (figures 8a and 9a): not found. Those of two layers are the first claim's. The "
    "authors' notebook (notebooks/Sweep.ipynb at 970dbe4) may print more of them: only its beginning was "
    "read.",
    folder=Path(__file__).parent,
)
