"""The table: one row a measurement, and what the file around it says."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

COLUMNS = (
    "what",
    "size",
    "case",
    "back end",
    "ours",
    "peer",
    "peer's",
    "ours / peer",
    "bandwidth",
    "error",
)
NOT_MEASURED = "not measured"


@dataclass
class Row:
    """ours, theirs: in `unit`. bandwidth: the share of a copy's, for what must be read and written. error:
    the difference to the reference in float64, by norms, the largest of all outputs and gradients."""

    what: str
    size: str
    case: str
    backend: str = ""
    ours: float | None = None
    peer: str = ""
    theirs: float | None = None
    bandwidth: float | None = None
    error: float | None = None
    unit: str = "ms"

    def cells(self) -> list[str]:
        def number(value: float | None) -> str:
            return NOT_MEASURED if value is None else f"{value:.4g} {self.unit}"

        ratio = "" if self.ours is None or self.theirs is None else f"{self.ours / self.theirs:.2f}"
        return [
            self.what,
            self.size,
            self.case,
            self.backend,
            number(self.ours),
            self.peer,
            number(self.theirs) if self.peer else "",
            ratio,
            "" if self.bandwidth is None else f"{self.bandwidth:.0%}",
            "" if self.error is None else f"{self.error:.0e}",
        ]


def show(rows: Sequence[Row], notes: Sequence[str], console: Console) -> None:
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row.cells())
    console.print(table)
    for note in notes:
        console.print(note)


def markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    lines = [
        "# On a GPU",
        "",
        "Made by `python -m benchmarks.gpu`.",
        "",
        *(f"- {note}" for note in notes),
        "",
    ]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    return "\n".join(lines) + "\n"
