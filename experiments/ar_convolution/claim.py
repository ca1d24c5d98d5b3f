"""What the short convolution does for Mamba and for Based."""

from pathlib import Path
from typing import Any

import pandas as pd

from experiments.claims.checks import CARRIED, COMES_CLOSE, FAILS, every, learned, where
from experiments.claims.definition import Check, Claim
from experiments.claims.figures import by_category
from experiments.claims.grids import recall_runs
from experiments.claims.recipes import PAPER_RATES, PAPER_WIDTHS, Cell, cells, paper
from tasks import AssociativeRecall

MAMBA, BASED = (0, 1, 2, 3, 4), (1, 2, 3, 4, "long")


def grid(size: str) -> list[Cell]:
    found = []
    for width in {"tiny": (8,), "small": (64,), "paper": PAPER_WIDTHS}[size]:
        for d_conv in MAMBA:
            runs = recall_runs(size, "Mamba", width, d_conv=d_conv)
            found += cells(runs, architecture="Mamba", convolution=d_conv, width=width)
        for d_conv in BASED:
            options: dict[str, Any] = {"d_conv": None if d_conv == "long" else d_conv}
            if size == "paper":
                rates = PAPER_RATES
                runs = paper("Based", AssociativeRecall(), d_model=width, epochs=16, rates=rates, **options)
            else:
                runs = recall_runs(size, "Based", width, **options)
            found += cells(runs, architecture="Based", convolution=d_conv, width=width)
    return found


def checks(table: pd.DataFrame) -> list[Check]:
    mamba, based = where(table, architecture="Mamba"), where(table, architecture="Based")
    widest = table.width.max()
    wide = where(mamba, convolution=(2, 3, 4))
    return [
        every(
            f"At the largest width Mamba with a convolution of width 2 to 4 reaches {COMES_CLOSE:.0%}",
            where(wide, width=widest),
            "accuracy",
            lambda accuracy: accuracy >= COMES_CLOSE,
            percent=True,
        ),
        every(
            f"Mamba without a convolution, or with one of width 1, stays below {FAILS:.0%}",
            where(mamba, convolution=(0, 1)),
            "accuracy",
            lambda accuracy: accuracy < FAILS,
            percent=True,
        ),
        every(
            f"At the largest width Based with a convolution of width 2 to 4 reaches {COMES_CLOSE:.0%}",
            where(based, convolution=(2, 3, 4), width=widest),
            "accuracy",
            lambda accuracy: accuracy >= COMES_CLOSE,
            percent=True,
        ),
        every(
            f"Based with a convolution of width 1 stays below {FAILS:.0%}",
            where(based, convolution=(1,)),
            "accuracy",
            lambda accuracy: accuracy < FAILS,
            percent=True,
        ),
        every(
            f"Where Mamba learns, the clean output of a convolution at the value or up to two tokens later "
            f"restores at least {CARRIED}",
            learned(wide),
            "conv",
            lambda attrib: attrib >= CARRIED,
        ),
        every(
            f"and a single tap there, the one that reaches the key, restores at least {CARRIED}",
            learned(wide),
            "tap",
            lambda attrib: attrib >= CARRIED,
        ),
    ]


CLAIM = Claim(
    number=3,
    title="Mamba's short convolution",
    statement="Mamba's success comes from its short convolution, which joins key and value; without one it "
    "fails. Based, too, needs one.",
    grid=grid,
    checks=checks,
    figures=lambda table: [by_category(table, "convolution", "accuracy", "accuracy")],
    columns="accuracy published_accuracy heuristic value conv tap other_tap mechanism seeds runs".split(),
    folder=Path(__file__).parent,
)
