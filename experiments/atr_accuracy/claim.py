"""Which architectures learn associative treecall."""

from pathlib import Path

import pandas as pd

from experiments.claims.checks import absent, best, every, where
from experiments.claims.definition import Check, Claim
from experiments.claims.figures import by_width
from experiments.claims.grids import treecall
from experiments.mechanism import MARGIN

ENOUGH = 0.9
GOOD = ("Attention", "Based", "Mamba")


def checks(table: pd.DataFrame) -> list[Check]:
    found = []
    for setting in table.setting.unique():
        here = where(table, setting=setting)
        succeeding = best(where(here, architecture=GOOD))
        if "accuracy" in succeeding:
            succeeding = succeeding.assign(above=succeeding.accuracy - succeeding.heuristic)
        found += [
            every(
                f"{setting}: Attention, Based and Mamba reach {ENOUGH:.0%} at some width",
                succeeding,
                "accuracy",
                lambda accuracy: accuracy >= ENOUGH,
                percent=True,
                missing=absent(here, *GOOD),
            ),
            every(
                f"{setting}: and are above every simple rule by {MARGIN}",
                succeeding,
                "above",
                lambda above: above >= MARGIN,
                missing=absent(here, *GOOD),
            ),
            every(
                f"{setting}: H3 and Hyena stay below {ENOUGH:.0%}, at every width",
                best(where(here, architecture=("H3", "Hyena"))),
                "accuracy",
                lambda accuracy: accuracy < ENOUGH,
                percent=True,
            ),
        ]
    return found


CLAIM = Claim(
    number=5,
    title="Which architectures learn associative treecall",
    statement="On associative treecall, recall over a tree, the same architectures succeed as on associative "
    "recall: Attention, Based and Mamba, not H3 and Hyena.",
    grid=treecall,
    checks=checks,
    figures=lambda table: [
        by_width(where(table, setting=setting), "accuracy", "accuracy", title=setting, levels="heuristic")
        for setting in table.setting.unique()
    ],
    columns="accuracy published_accuracy heuristic rate steps seeds runs".split(),
    folder=Path(__file__).parent,
)
