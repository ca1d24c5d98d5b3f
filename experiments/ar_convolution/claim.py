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
            published="a step up in accuracy from width 1 to 2 (section 5.4)",
            percent=True,
        ),
        every(
            f"Mamba without a convolution, or with one of width 1, stays below {FAILS:.0%}",
            where(mamba, convolution=(0, 1)),
            "accuracy",
            lambda accuracy: accuracy < FAILS,
            published="without one it fails; with one of width 1 and rate 0.01 the answer has probability "
            "0.0002 at width 128 (authors' repository)",
            percent=True,
        ),
        every(
            f"At the largest width Based with a convolution of width 2 to 4 reaches {COMES_CLOSE:.0%}",
            where(based, convolution=(2, 3, 4), width=widest),
            "accuracy",
            lambda accuracy: accuracy >= COMES_CLOSE,
            published="99.06 % with width 3 (section 5.1)",
            percent=True,
        ),
        every(
            f"Based with a convolution of width 1, or a long one, stays below {FAILS:.0%}",
            where(based, convolution=(1, "long")),
            "accuracy",
            lambda accuracy: accuracy < FAILS,
            published="both harm it (section 5.4)",
            percent=True,
        ),
        every(
            f"Where Mamba learns, the clean output of a convolution at the value or up to two tokens later "
            f"restores at least {CARRIED}",
            learned(wide),
            "conv",
            lambda attrib: attrib >= CARRIED,
            published="0.985 in block 0, at the token after the value: width 128, rate 0.001 (authors' "
            "repository); induction by short convolutions (abstract of version 3)",
        ),
        every(
            f"and a single tap there, the one that reaches the key, restores at least {CARRIED}",
            learned(wide),
            "tap",
            lambda attrib: attrib >= CARRIED,
            published="not found in the paper or the authors' repository: they intervene on whole outputs",
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
    columns=(
        "accuracy published_accuracy paper_accuracy heuristic value conv paper_conv "
        "tap other_tap mechanism seeds runs"
    ).split(),
    published="Accuracies of the changed convolutions are only drawn (figures 6a and 6c; mamba_conv_size.pdf "
    "and based_conv_size.pdf in the authors' repository): their numbers were not found. Those of the "
    "unchanged ones are the first claim's. The Attrib of a convolution output is computed from the "
    "probabilities in the authors' table: 0.564 restored, 0.036 corrupted, 0.572 clean. The authors' "
    "notebook (notebooks/Sweep.ipynb at 970dbe4) may print more of them: only its beginning was read.",
    folder=Path(__file__).parent,
)
