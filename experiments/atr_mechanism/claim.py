"""By which mechanism the architectures do associative treecall."""

from pathlib import Path

import pandas as pd

from experiments.claims.checks import NOT_STORED, STORED, absent, every, learned, where
from experiments.claims.definition import Check, Claim
from experiments.claims.figures import by_width
from experiments.claims.grids import treecall


def checks(table: pd.DataFrame) -> list[Check]:
    found = learned(table)
    return [
        every(
            f"Where Attention and Based learn the task, Attrib @ Value is at least {STORED}, as on recall",
            where(found, architecture=("Attention", "Based")),
            "value",
            lambda attrib: attrib >= STORED,
            missing=absent(table, "Attention", "Based"),
        ),
        every(
            f"Where Mamba, H3 or Hyena learn it, Attrib @ Value is at most {NOT_STORED}, as on recall",
            where(found, architecture=("Mamba", "H3", "Hyena")),
            "value",
            lambda attrib: attrib <= NOT_STORED,
            missing=absent(table, "Mamba", "H3", "Hyena"),
        ),
    ]


CLAIM = Claim(
    number=6,
    title="Where the association is, over trees",
    statement="On associative treecall each architecture keeps the mechanism that it has on associative "
    "recall.",
    grid=treecall,
    checks=checks,
    figures=lambda table: [
        by_width(learned(where(table, setting=setting)), "value", "Attrib @ Value", title=setting)
        for setting in table.setting.unique()
    ],
    columns="accuracy heuristic key value query conv mechanism published_value seeds".split(),
    folder=Path(__file__).parent,
)
