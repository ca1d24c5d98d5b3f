"""By which mechanism the architectures do associative recall."""

from pathlib import Path

import pandas as pd

from experiments.claims.checks import NOT_STORED, STORED, every, learned, where
from experiments.claims.definition import Check, Claim
from experiments.claims.figures import by_width
from experiments.claims.grids import recall

STATE_SPACE = ("Mamba", "DeltaNet", "H3", "Hyena")


def checks(table: pd.DataFrame) -> list[Check]:
    found = learned(table)
    recurrent = where(found, architecture=STATE_SPACE)
    if {"key", "query"} <= set(recurrent):
        recurrent = recurrent.assign(direct=recurrent.key + recurrent["query"])
    return [
        every(
            f"Where Attention and Based learn the task, Attrib @ Value is at least {STORED}",
            where(found, architecture=("Attention", "Based")),
            "value",
            lambda attrib: attrib >= STORED,
            published="1.00 in nearly every model of Attention; Based does nothing else (section 5.1)",
        ),
        every(
            f"Where Mamba, DeltaNet, H3 or Hyena learn it, Attrib @ Value is at most {NOT_STORED}",
            recurrent,
            "value",
            lambda attrib: attrib <= NOT_STORED,
            published="they retrieve directly (section 5.1); 0.00 for Mamba and Hyena (authors' repository)",
        ),
        every(
            f"and Attrib @ Key and Attrib @ Query together are at least {STORED}: direct retrieval",
            recurrent,
            "direct",
            lambda attrib: attrib >= STORED,
            published="the best nearly all at the query, worse ones at query and key together (section 5.1)",
        ),
    ]


CLAIM = Claim(
    number=2,
    title="Where the association is",
    statement="Attention and Based store the association of key and value at the value (Attrib @ Value near "
    "1); the state space models retrieve directly.",
    grid=recall,
    checks=checks,
    figures=lambda table: [by_width(learned(table), "value", "Attrib @ Value")],
    columns="accuracy key value query conv mechanism published_value paper_value seeds".split(),
    published="Attrib @ Value of the most accurate models, as the authors' notebook printed it; that of "
    "Attention of width 16 divides by next to nothing. H3's and BaseConv's were noise. Other numbers by "
    "width are only drawn in the paper (figure 3): not found.",
    folder=Path(__file__).parent,
)
