"""Statements about the table of conditions, each with the numbers that decide it."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from experiments.claims.definition import Check
from experiments.mechanism import MARGIN
from hooked_ssm.plotting import fixed

SUCCEEDS, COMES_CLOSE, FAILS = 0.95, 0.75, 0.5  # accuracies
QUANTITIES = {
    "accuracy": "accuracy",
    "above": "accuracy beyond the best rule's",
    "lost": "accuracy lost",
    "value": "Attrib @ Value",
    "direct": "Attrib @ Key + @ Query",
    "conv": "Attrib of the best convolution output",
    "tap": "Attrib of the best tap that reaches the key",
}
STORED, NOT_STORED, CARRIED = 0.9, 0.1, 0.5  # Attrib


def where(table: pd.DataFrame, **labels: object) -> Any:
    """The conditions with these labels (a tuple: any of them)."""
    found: Any = table
    for name, value in labels.items():
        found = found[found[name].isin(value if isinstance(value, tuple) else (value,))]
    return found


def learned(table: pd.DataFrame) -> pd.DataFrame:
    """The conditions of which there is something to explain: more accurate than every simple rule by 0.1, and
    the corruption costs 0.1 of probability. Conditions without runs stay in."""
    if "accuracy" not in table:
        return table
    good: Any = (table.accuracy >= table.heuristic + MARGIN) & (table.gap >= MARGIN)
    return table.loc[good | table.accuracy.isna()]


def best(table: pd.DataFrame, column: str = "accuracy") -> pd.DataFrame:
    """Of each architecture its condition with the highest accuracy; one without runs if any is missing."""
    if column not in table:
        return table
    rows = []
    for _, group in table.groupby("architecture", sort=False):
        missing = group[group[column].isna()]
        rows.append(missing.iloc[:1] if len(missing) else group.loc[[group[column].idxmax()]])
    return pd.concat(rows) if rows else table


def absent(table: pd.DataFrame, *architectures: str) -> list[str]:
    """Those that the grid does not have at this size."""
    return [name for name in architectures if name not in set(table.architecture)]


def every(
    statement: str,
    table: pd.DataFrame,
    column: str,
    test: Callable[[float], bool],
    *,
    published: str,
    percent: bool = False,
    missing: Sequence[str] = (),
) -> Check:
    """Whether the column passes the test in every condition that has a number. published: see `Check`.
    missing: architectures that the statement is about and the grid lacks."""
    if column not in table or table[column].isna().all():
        return Check(statement, None, published=published)
    measured: Any = table[table[column].notna()]
    holds = all(bool(test(value)) for value in measured[column])
    found = [*ranges(measured, column, percent), *(f"{name} not tried" for name in missing)]
    evidence = f"{QUANTITIES[column]}: {'; '.join(found)}"
    return Check(statement, holds, len(measured) == len(table) and not missing, evidence, published)


def ranges(table: pd.DataFrame, column: str, percent: bool) -> list[str]:
    """Least and largest value over the widths, of each architecture, convolution and number of layers."""
    names = table.apply(condition_name, axis=1)
    found = []
    for name, group in table.groupby(names, sort=False):
        values = [f"{v:.1%}" if percent else fixed(v, 2) for v in (group[column].min(), group[column].max())]
        widths = [str(width) for width in dict.fromkeys((group.width.min(), group.width.max()))]
        shown = " to ".join(dict.fromkeys(values))
        found.append(f"{name} ({'width' if len(widths) == 1 else 'widths'} {' to '.join(widths)}) {shown}")
    return found


LABELS = ("setting", "architecture", "layers", "convolution", "width")


def condition_name(row: Any) -> str:
    """'Mamba, 1 layer', and the like."""
    parts = [row["architecture"]]
    if "layers" in row:
        parts.append(f"{row['layers']} layer{'' if row['layers'] == 1 else 's'}")
    if "convolution" in row:
        parts.append(f"convolution {row['convolution']}")
    return ", ".join(parts)
