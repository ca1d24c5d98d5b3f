"""A claim of the paper: its grid, what of it can be checked in numbers, and the verdict they give."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.claims.recipes import SIZES, Cell
from experiments.runs import TrainConfig

VERDICTS = ("reproduced", "partly", "not reproduced", "not yet run")


@dataclass(frozen=True)
class Check:
    """One statement of a claim. holds: in all that was measured; None where nothing was. complete: whether
    all was measured that it is about. published: what the paper or its code says of it, in our words, and
    where; or that it was not found."""

    statement: str
    holds: bool | None
    complete: bool = True
    evidence: str = ""
    published: str = ""

    @property
    def said(self) -> str:
        if self.holds is None:
            return "not measured"
        return "does not hold" if not self.holds else "holds" if self.complete else "holds as far as measured"


@dataclass(frozen=True)
class Claim:
    """number, title, statement: what the paper says. grid: its runs at a size. checks: from the table of
    conditions (`experiments.claims.selection.conditions`) at that size to what holds. figures: from the same
    table to pictures. columns: of `experiments.claims.pages.COLUMNS`, what its table shows. published: about
    what was published, and what of it was not found. folder: with README.md and published.csv."""

    number: int
    title: str
    statement: str
    grid: Callable[[str], list[Cell]]
    checks: Callable[[pd.DataFrame], Sequence[Check]]
    figures: Callable[[pd.DataFrame], Sequence[Any]]
    columns: Sequence[str]
    published: str
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def cells(self, size: str) -> list[Cell]:
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}.")
        return list(cells_of(self.grid, size))

    def configs(self, size: str) -> list[TrainConfig]:
        return [each.config for each in self.cells(size)]


@cache
def cells_of(grid: Callable[[str], list[Cell]], size: str) -> tuple[Cell, ...]:
    """The paper's grids are of hundreds of configs, and claims share them."""
    return tuple(grid(size))


def verdict(checks: Sequence[Check]) -> str:
    """One of `VERDICTS`: not yet run if nothing was measured; reproduced if every statement holds, and all
    was measured that it is about; not reproduced if no statement holds; else partly."""
    if all(check.holds is None for check in checks):
        return "not yet run"
    if all(check.holds and check.complete for check in checks):
        return "reproduced"
    return "partly" if any(check.holds for check in checks) else "not reproduced"


def load_claim(folder: Path) -> Claim:
    """The CLAIM of the folder's claim.py. Raises FileNotFoundError where there is none."""
    path = (folder / "claim.py").resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no claim.py in {folder}: not the folder of a claim.")
    here = Path(__file__).parents[1]
    if path.parent.parent == here:
        module = importlib.import_module(f"experiments.{path.parent.name}.claim")
    else:
        spec = importlib.util.spec_from_file_location(f"claim_{path.parent.name}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    claim = getattr(module, "CLAIM", None)
    if not isinstance(claim, Claim):
        raise ValueError(f"{path} must define CLAIM, a Claim, got {claim!r}.")
    return claim


def all_claims() -> list[Claim]:
    """The paper's, in order."""
    here = Path(__file__).parents[1]
    found = [load_claim(path.parent) for path in sorted(here.glob("*/claim.py"))]
    return sorted(found, key=lambda claim: claim.number)
