"""Whether what is learned holds for pairs that training never asked about."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from experiments.claims.checks import absent, every, learned, where
from experiments.claims.definition import Check, Claim
from experiments.claims.figures import by_width
from experiments.claims.grids import PUBLISHED, SMALL_RATES
from experiments.claims.recipes import (
    MORE_RATES,
    PAPER_RATES,
    PAPER_WIDTHS,
    SMALL_RECALL,
    TINY_RECALL,
    Cell,
    cells,
    paper,
    small,
    tiny,
)
from tasks import AssociativeRecall, AssociativeTreecall

SHARE = 0.2
NEAR = 0.05


def grid(size: str) -> list[Cell]:
    found = []
    if size != "paper":
        for architecture in ("Attention", "Mamba"):
            if size == "tiny":
                runs, width = tiny(architecture, replace(TINY_RECALL, held_out=SHARE), d_model=8), 8
            else:
                task, width = replace(SMALL_RECALL, held_out=SHARE), 64
                runs = small(architecture, task, d_model=width, rates=SMALL_RATES[architecture])
            found += cells(runs, setting="recall", architecture=architecture, layers=2, width=width)
        return found
    tree = AssociativeTreecall.preset("pcfg_train_test_split", test_share=0.0)
    recall = AssociativeRecall(held_out=SHARE)
    for architecture in PUBLISHED:
        for width in PAPER_WIDTHS:
            for layers in (1, 2, 3):
                size_of = {"d_model": width, "n_layers": layers, "decay": "linear"}
                runs = paper(architecture, tree, epochs=32, **size_of)
                found += cells(
                    runs, setting="treecall", architecture=architecture, layers=layers, width=width
                )
            rates = PAPER_RATES + MORE_RATES
            runs = paper(architecture, recall, d_model=width, epochs=16, rates=rates, decay="linear")
            found += cells(runs, setting="recall", architecture=architecture, layers=2, width=width)
    return found


def checks(table: pd.DataFrame) -> list[Check]:
    found = learned(table)
    if "accuracy" in found:
        found = found.assign(lost=found.dev_accuracy - found.accuracy)
    return [
        every(
            f"{setting}: where Attention, Based and Mamba learn the task, held-out pairs cost them at most "
            f"{NEAR} of accuracy",
            where(found, setting=setting, architecture=("Attention", "Based", "Mamba")),
            "lost",
            lambda lost: lost <= NEAR,
            missing=absent(where(table, setting=setting), "Attention", "Based", "Mamba"),
        )
        for setting in table.setting.unique()
    ]


CLAIM = Claim(
    number=8,
    title="Pairs that training never asked about",
    statement="What is learned holds for pairs of key and value that were never asked about in training.",
    grid=grid,
    checks=checks,
    figures=lambda table: [
        by_width(
            where(table, setting=setting, layers=2), "accuracy", "accuracy, held-out pairs", title=setting
        )
        for setting in table.setting.unique()
    ],
    columns="accuracy dev_accuracy heuristic mechanism rate seeds runs".split(),
    folder=Path(__file__).parent,
)
