"""Twelve small runs: a grid for the tests of sweeps."""

from dataclasses import replace
from pathlib import Path

from experiments.claims.definition import Claim
from experiments.claims.recipes import Cell, cells, tiny
from experiments.runs import TrainConfig
from tasks import AssociativeRecall

TASK = AssociativeRecall(n_keys=6, n_values=6, n_pairs=2)


def run(architecture: str, rate: float, seed: int) -> TrainConfig:
    (config,) = tiny(architecture, TASK, d_model=4)
    return replace(config, steps=30, lr=rate, seed=seed, eval_every=10, checkpoint_every=5, n_test=24)


def grid(size: str) -> list[Cell]:
    found = []
    for architecture in ("Attention", "Mamba"):
        for rate in (1e-2, 3e-3):
            found += cells(
                [run(architecture, rate, seed) for seed in range(3)], architecture=architecture, width=4
            )
    return found


CLAIM = Claim(
    number=0,
    title="A grid",
    statement="Twelve runs.",
    grid=grid,
    checks=lambda table: [],
    figures=lambda table: [],
    columns=["accuracy", "runs"],
    published="nothing (section 0)",
    folder=Path(__file__).parent,
)
