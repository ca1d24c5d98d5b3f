"""Which architectures learn associative recall, and how wide they must be."""

from pathlib import Path

from experiments.claims.checks import COMES_CLOSE, FAILS, SUCCEEDS, best, every, where
from experiments.claims.definition import Check, Claim
from experiments.claims.figures import by_width
from experiments.claims.grids import recall


def checks(table) -> list[Check]:
    return [
        every(
            f"Attention and Based reach {SUCCEEDS:.0%} at some width",
            best(where(table, architecture=("Attention", "Based"))),
            "accuracy",
            lambda accuracy: accuracy >= SUCCEEDS,
            percent=True,
        ),
        every(
            f"Mamba and DeltaNet reach {COMES_CLOSE:.0%} at some width",
            best(where(table, architecture=("Mamba", "DeltaNet"))),
            "accuracy",
            lambda accuracy: accuracy >= COMES_CLOSE,
            percent=True,
        ),
        every(
            f"H3 and Hyena stay below {FAILS:.0%} at every width",
            best(where(table, architecture=("H3", "Hyena"))),
            "accuracy",
            lambda accuracy: accuracy < FAILS,
            percent=True,
        ),
    ]


CLAIM = Claim(
    number=1,
    title="Which architectures learn associative recall",
    statement="Transformers and Based succeed at associative recall, Mamba and DeltaNet come close, H3 and "
    "Hyena fail.",
    grid=recall,
    checks=checks,
    figures=lambda table: [by_width(table, "accuracy", "accuracy")],
    columns="accuracy published_accuracy paper_accuracy heuristic rate steps seeds runs".split(),
    folder=Path(__file__).parent,
)
