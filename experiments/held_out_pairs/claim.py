"""Whether what is learned holds for pairs that training never asked about."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from experiments.atr_small import reproduce as atr_small
from experiments.claims.checks import absent, best, every, learned, where
from experiments.claims.definition import Check, Claim
from experiments.claims.figures import by_width
from experiments.claims.grids import PUBLISHED, SMALL_RATES, small_treecall_runs
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
from experiments.mechanism import MARGIN
from tasks import AssociativeRecall, AssociativeTreecall

LEARN = ("Attention", "Based", "Mamba")
SHARE = 0.2
NEAR = 0.05


def grid(size: str) -> list[Cell]:
    found = []
    if size == "tiny":
        for architecture in ("Attention", "Mamba"):
            runs = tiny(architecture, replace(TINY_RECALL, held_out=SHARE), d_model=8)
            found += cells(runs, setting="recall", architecture=architecture, layers=2, width=8)
        return found
    if size == "small":
        task, tree = replace(SMALL_RECALL, held_out=SHARE), replace(atr_small.TASK, held_out=SHARE)
        for architecture in LEARN:
            runs = small(architecture, task, d_model=64, rates=SMALL_RATES[architecture])
            found += cells(runs, setting="recall", architecture=architecture, layers=2, width=64)
        for architecture in LEARN:
            runs = small_treecall_runs(architecture, tree)
            found += cells(runs, setting="treecall", architecture=architecture, layers=2, width=64)
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
    if "accuracy" in table:
        lost, above = table.dev_accuracy - table.accuracy, table.accuracy - table.heuristic
        table = table.assign(lost=lost, above=above)
    recall = where(learned(table), setting="recall", architecture=LEARN)
    trees = best(where(table, setting="treecall", architecture=LEARN))
    tried = {name: absent(where(table, setting=name), *LEARN) for name in ("recall", "treecall")}
    return [
        every(
            f"Recall: where Attention, Based and Mamba learn, held-out pairs cost at most {NEAR} of accuracy",
            recall,
            "lost",
            lambda lost: lost <= NEAR,
            published="not found: the authors' repository ignores its split here, so nothing was held out",
            missing=tried["recall"],
        ),
        every(
            f"Trees: they answer held-out pairs better than every simple rule, by {MARGIN}",
            trees,
            "above",
            lambda above: above >= MARGIN,
            published="Attention 68.12 % at width 256; Mamba generalises too, less than Attention (section "
            "5.3)",
            missing=tried["treecall"],
        ),
        every(
            f"Trees: and more than {NEAR} worse than pairs of training",
            trees,
            "lost",
            lambda lost: lost > NEAR,
            published="much, in every model: Attention of width 256 has 95.62 % and 68.12 % (section 5.3)",
            missing=tried["treecall"],
        ),
    ]


CLAIM = Claim(
    number=8,
    title="Pairs that training never asked about",
    statement="What is learned on associative treecall holds in part for pairs of key and value that were "
    "never asked about in training: it costs accuracy, but models still generalise.",
    grid=grid,
    checks=checks,
    figures=lambda table: [
        by_width(
            where(table, setting=setting, layers=2), "accuracy", "accuracy, held-out pairs", title=setting
        )
        for setting in table.setting.unique()
    ],
    columns=(
        "accuracy dev_accuracy paper_accuracy paper_dev_accuracy heuristic mechanism rate seeds runs"
    ).split(),
    published="Three numbers, and words (section 5.3); the rest is only drawn (figure 5a): not found. Rates "
    "were chosen on pairs of training (dev), as here. The authors' notebook (notebooks/Sweep.ipynb at "
    "970dbe4) may print more of them: only its beginning was read.",
    folder=Path(__file__).parent,
)
