"""Which rate is chosen, on which documents, and what is reported."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.claims.recipes import cells
from experiments.claims.selection import bootstrap, conditions
from experiments.sweeps.tables import Tables

from ...experiments.small import config
from .made_up import tables

RATES, SEEDS = (1e-3, 1e-2), (0, 1)
GRID = cells(
    [replace(config(), lr=lr, seed=seed) for lr in RATES for seed in SEEDS], architecture="Mamba", width=8
)
# by rate and seed: accuracy on the documents that select, and on others
FOUND = {
    (1e-3, 0): (0.70, 0.60),
    (1e-3, 1): (0.20, 0.30),
    (1e-2, 0): (0.60, 0.58),
    (1e-2, 1): (0.50, 0.54),
}


def row(accuracy=lambda one: FOUND[one.config.lr, one.config.seed], **options):
    (found,) = conditions(GRID, tables(GRID, accuracy, **options)).to_dict("records")
    return found


def test_the_papers_procedure_takes_the_best_run_of_one_seed_and_reports_what_chose_it():
    found = row(attribs={"key": 0.1, "value": 0.9, "query": 0.0})
    assert found["published_lr"] == 1e-3 and found["published_accuracy"] == 0.70
    assert found["published_value"] == 0.9


def test_the_sound_procedure_takes_the_best_rate_over_seeds_and_reports_other_documents():
    found = row()
    assert found["lr"] == 1e-2 and found["seeds"] == 2
    assert found["accuracy"] == pytest.approx((0.58 + 0.54) / 2)
    assert found["low"] < found["accuracy"] < found["high"]
    assert (found["runs"], found["asked"]) == (4, 4)


def test_pairs_held_out_select_on_documents_of_training():
    task = replace(config().task, held_out=0.2)
    grid = cells([replace(config(), task=task, lr=lr) for lr in RATES], architecture="Mamba", width=8)
    made = tables(grid, lambda one: (0.9, 0.9) if one.config.lr == 1e-3 else (0.1, 0.1))
    made.runs["dev_accuracy"] = [0.2, 0.8]
    (found,) = conditions(grid, made).to_dict("records")
    assert found["lr"] == 1e-2 and found["accuracy"] == 0.1 and found["dev_accuracy"] == 0.8


def test_attributions_are_those_of_the_last_input_and_of_the_best_place_of_a_convolution():
    found = row(
        attribs={"key": 0.1, "value": 0.7, "query": 0.2},
        convs={"value": 0.3, "value+1": 0.8, "query": 0.95},
        taps={(1, "value"): 0.4, (2, "value+1"): 0.6, (3, "value+1"): 0.9, (0, "value"): 0.1},
    )
    assert (found["key"], found["value"], found["query"]) == pytest.approx((0.1, 0.7, 0.2))
    assert (found["value_low"], found["value_high"]) == pytest.approx((0.6, 0.8))
    assert found["conv"] == pytest.approx(0.8) and found["conv_at"] == "block 1, value+1"
    assert found["tap"] == pytest.approx(0.6) and found["tap_at"] == "block 0, value+1"
    assert found["other_tap"] == pytest.approx(0.9)


def test_a_condition_without_runs_has_a_row_without_numbers():
    found = row(lambda one: None)
    assert found["runs"] == 0 and found["asked"] == 4 and "accuracy" not in found
    (empty,) = conditions(GRID, Tables.empty()).to_dict("records")
    assert empty["runs"] == 0


def test_some_runs_are_used_though_others_are_missing():
    found = row(lambda one: FOUND[one.config.lr, one.config.seed] if one.config.lr == 1e-3 else None)
    assert found["runs"] == 2 and found["lr"] == 1e-3 and found["accuracy"] == pytest.approx(0.45)


def test_of_rates_with_fewer_seeds_none_is_chosen():
    best = {(1e-3, 0): (0.99, 0.99), (1e-2, 0): (0.6, 0.5), (1e-2, 1): (0.6, 0.5)}
    found = row(lambda one: best.get((one.config.lr, one.config.seed)))
    assert found["lr"] == 1e-2 and found["accuracy"] == 0.5
    assert found["published_lr"] == 1e-3, "the paper has one seed"


def test_attributions_of_a_seed_that_learned_nothing_are_left_out():
    made = tables(GRID, lambda one: FOUND[one.config.lr, one.config.seed], attribs={"value": 0.8})
    chosen = [one.name for one in GRID if one.config.lr == 1e-2]
    nothing = made.runs.run == chosen[1]
    made.runs.loc[nothing, "mechanism"] = "not learned"
    made.attributions.loc[made.attributions.run == chosen[1], ["attrib", "low", "high"]] = -7.0
    (found,) = conditions(GRID, made).to_dict("records")
    assert found["value"] == pytest.approx(0.8) and found["value_low"] == pytest.approx(0.7)
    assert found["mechanism"] == "mixed (1), not learned (1)" and found["seeds"] == 2


def test_the_interval_is_wide_where_seeds_differ_and_that_of_the_documents_where_not():
    low, high = bootstrap(np.array([0.5, 0.5]), np.array([1000, 1000]))
    exact = 1.96 * np.sqrt(0.25 / 2000)
    assert low == pytest.approx(0.5 - exact, abs=0.006) and high == pytest.approx(0.5 + exact, abs=0.006)
    low, high = bootstrap(np.array([0.2, 0.8]), np.array([1000, 1000]))
    assert low < 0.22 and high > 0.78
    assert all(np.isnan(bootstrap(np.array([]), np.array([]))))
