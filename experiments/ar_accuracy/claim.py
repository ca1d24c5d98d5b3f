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
            published="100 % from width 32 on, and at most 99.06 % (section 5.1)",
            percent=True,
        ),
        every(
            f"Mamba and DeltaNet reach {COMES_CLOSE:.0%} at some width",
            best(where(table, architecture=("Mamba", "DeltaNet"))),
            "accuracy",
            lambda accuracy: accuracy >= COMES_CLOSE,
            published="at most 91.25 % (section 5.1) and 100 % (authors' repository)",
            percent=True,
        ),
        every(
            f"H3 and Hyena stay below {FAILS:.0%} at every width",
            best(where(table, architecture=("H3", "Hyena"))),
            "accuracy",
            lambda accuracy: accuracy < FAILS,
            published="at most 2.50 % and 29.69 % (authors' repository)",
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
    published="Accuracy on the 320 documents that chose the rate, of one seed. The paper gives the best of "
    "Attention, Based and Mamba (section 5.1), the authors' repository all, as its notebook printed them. "
    "The paper says 32 pairs; its configuration, which is followed here, has 32 words, 16 pairs.",
    folder=Path(__file__).parent,
)
