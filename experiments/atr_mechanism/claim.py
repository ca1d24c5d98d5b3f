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
            published="mainly induction (section 5.2)",
            missing=absent(table, "Attention", "Based"),
        ),
        every(
            f"Where Mamba, H3 or Hyena learn it, it is at most {NOT_STORED}, as on recall",
            where(found, architecture=("Mamba", "H3", "Hyena")),
            "value",
            lambda attrib: attrib <= NOT_STORED,
            published="direct retrieval, at key or query (section 5.2)",
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
    columns="accuracy heuristic key value query conv mechanism published_value paper_value seeds".split(),
    published="In words (section 5.2); the numbers are only drawn (figure 4b): not found.",
    folder=Path(__file__).parent,
)
