"""What was published of a claim: published.csv in its folder, to be laid beside what is measured.

Its columns: labels of conditions, a blank one for any; numbers in percent (`QUANTITIES`); says, in words
where the paper gives no number; source, a place in the paper or in the authors' repository (`PLACES`).
"""

from typing import Any

import pandas as pd

from experiments.claims.definition import Claim

QUANTITIES = {
    "accuracy": "accuracy",
    "dev_accuracy": "accuracy, pairs of training",
    "value": "Attrib @ Value",
    "conv": "Attrib of a convolution output",
}
PLACES = (
    "The paper: arXiv:2505.15105, with the sections of its versions 1 and 2. The authors' repository: "
    "github.com/aryamanarora/tinylang."
)
SAYS, SOURCE = "says", "source"


def published_numbers(claim: Claim) -> pd.DataFrame:
    """Texts as they stand in the file, "" where nothing stands."""
    return pd.read_csv(claim.folder / "published.csv", dtype=str, keep_default_na=False)


def labels_of(published: pd.DataFrame) -> list[str]:
    return [name for name in published if name not in (*QUANTITIES, SAYS, SOURCE)]


def published_beside(published: pd.DataFrame, labels: dict[str, Any]) -> dict[str, Any]:
    """Of the condition with these labels: paper_accuracy and the like, shares; paper_says. Of two numbers the
    first in the file."""
    found: dict[str, Any] = {}
    for row in published.to_dict("records"):
        if all(not row[name] or row[name] == str(labels.get(name)) for name in labels_of(published)):
            numbers = {name: float(row[name]) / 100 for name in QUANTITIES if row.get(name)}
            words = {SAYS: row[SAYS]} if row.get(SAYS) else {}
            found = {f"paper_{name}": value for name, value in (numbers | words).items()} | found
    return found


def published_rows(published: pd.DataFrame) -> list[dict[str, str]]:
    """The file as a table to be read."""
    rows = []
    for row in published.to_dict("records"):
        labels = {name: row[name] or "any" for name in labels_of(published)}
        numbers = {
            title: f"{row[name]} %" if "accuracy" in name else f"{float(row[name]) / 100:g}"
            for name, title in QUANTITIES.items()
            if row.get(name)
        }
        rows.append((labels, numbers, row))
    shown = [name for name in QUANTITIES.values() if any(name in numbers for _, numbers, _ in rows)]
    words = any(row.get(SAYS) for _, _, row in rows)
    return [
        labels
        | {name: numbers.get(name, "-") for name in shown}
        | ({"in words": row.get(SAYS) or "-"} if words else {})
        | {"source": row[SOURCE]}
        for labels, numbers, row in rows
    ]
