"""The rule that names a mechanism, on tables made up for it."""

import re

import pandas as pd
import pytest

from experiments.mechanism import MARGIN, MECHANISMS, STRONG, mechanism, short_name

RIVALS = {"uniform": 0.25, "last_candidate": 0.3}
RESID, CONV = "blocks.{}.hook_resid_pre", "blocks.{}.hook_conv"


def table(*, convs: bool = True, layers: int = 2, **cells: float) -> pd.DataFrame:
    """Of a model with so many layers: all 0 but the block 0 input at the key, and `cells`.

    A cell is named by its letter, its layer and its position: r1_value is the input of block 1 at the value,
    r1_value_1 that at the token after it.
    """
    cells = {"r0_key": 1.0} | cells
    rows = []
    for letter, hook in (("r", RESID), ("c", CONV)) if convs else (("r", RESID),):
        for layer in range(layers):
            for position in ("key", "value", "value+1", "value+2", "divider", "query", "rest"):
                attrib = cells.pop(f"{letter}{layer}_{position.replace('+', '_')}", 0.0)
                row = {"hook": hook.format(layer), "position": position, "attrib": attrib}
                rows.append(row | {"low": attrib - 0.03, "high": attrib + 0.04, "restored": 0.5})
    assert not cells, f"no such cells: {list(cells)}"
    return pd.DataFrame(rows)


def name(cells: pd.DataFrame, accuracy: float = 0.95, gap: float = 0.8) -> str:
    found = mechanism(accuracy, RIVALS, gap, cells).name
    assert found in MECHANISMS
    return found


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"r1_value": 1.0}, "induction across layers"),
        ({"r1_value": STRONG}, "induction across layers"),
        ({"r1_value": 0.9, "c0_value": 1.0, "c1_value": 1.0, "r1_key": 0.9}, "induction across layers"),
        ({"r1_key": 1.0, "c1_value": 0.9}, "induction inside one layer"),
        ({"r1_key": 1.0, "c1_value": STRONG}, "induction inside one layer"),
        ({"r1_query": 1.0, "c0_value_1": 0.9}, "induction inside one layer"),
        ({"r1_key": 1.0, "c1_value_2": STRONG}, "induction inside one layer"),
        ({"r1_value_1": 0.9, "c0_value_1": 0.9}, "induction across layers"),
        ({"r1_query": 1.0, "c0_value": 0.7}, "induction inside one layer"),
        ({"r1_query": 0.9}, "direct retrieval"),
        ({"r1_key": STRONG}, "direct retrieval"),
        (
            {"r1_key": 0.9, "c0_key": 1.0, "c1_query": 0.9, "r1_value": 0.49, "c1_value": 0.49},
            "direct retrieval",
        ),
        ({"r1_key": 0.3, "r1_query": 0.3, "r1_value": 0.4}, "mixed"),
        ({"r1_rest": 1.0}, "mixed"),
        ({"r1_divider": 1.0, "c0_rest": 1.0}, "mixed"),
        ({"r1_key": 0.49, "r1_query": 0.49, "r1_value": 0.49, "c1_value": 0.49}, "mixed"),
        ({"r0_value": 1.0}, "mixed"),  # the first block's input is no stored association
    ],
)
def test_the_rule_on_two_layers(cells, expected):
    assert name(table(**cells)) == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"r2_value": 0.6, "r1_key": 0.9}, "induction across layers"),
        ({"r1_key": 0.9, "r2_query": 0.9}, "direct retrieval"),
        ({"r1_key": 0.9}, "mixed"),
        ({"r1_key": 0.9, "c2_value": 0.8}, "induction inside one layer"),
    ],
)
def test_the_rule_on_three_layers(cells, expected):
    assert name(table(layers=3, **cells)) == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [({"r1_value": 0.8}, "induction across layers"), ({"r1_query": 0.8}, "direct retrieval"), ({}, "mixed")],
)
def test_a_model_without_convolutions_is_judged_by_its_blocks_inputs(cells, expected):
    assert name(table(convs=False, **cells)) == expected


def test_one_layer_can_only_do_it_inside_or_directly():
    assert name(table(layers=1, c0_value=0.8)) == "induction inside one layer"
    assert name(table(layers=1, c0_value=0.2)) == "direct retrieval"
    found = mechanism(0.95, RIVALS, 0.8, table(layers=1, convs=False))
    assert found.name == "direct retrieval" and "block 0 input: key 1.00" in found.evidence


def test_a_model_no_better_than_a_simple_rule_has_not_learned():
    strong = table(r1_value=1.0)
    assert name(strong, accuracy=0.3 + MARGIN - 1e-9) == "not learned"
    assert name(strong, accuracy=0.3 + MARGIN + 1e-9) == "induction across layers"
    found = mechanism(0.314, RIVALS, 0.8, strong)
    assert found.evidence == "accuracy 31.4%, heuristic last_candidate 30.0%"


def test_where_the_corruption_costs_nothing_there_is_nothing_to_attribute():
    strong = table(r1_value=1.0)
    assert name(strong, gap=MARGIN - 1e-9) == "not learned"
    assert name(strong, gap=MARGIN) == "induction across layers"
    found = mechanism(0.95, RIVALS, 0.0123, strong)
    assert found.evidence == "corrupting the key costs only 0.012 of probability"


@pytest.mark.parametrize(
    "cells", [{"r1_value": 0.81}, {"c1_value": 0.62}, {"r1_query": 0.73}, {"r1_rest": 0.54}]
)
def test_the_evidence_has_the_numbers_that_decided(cells):
    found = mechanism(0.95, RIVALS, 0.8, table(**cells))
    cell, value = next(iter(cells.items()))
    position = cell.partition("_")[2]
    hook = {"r1": "block 1 input", "c1": "block 1 conv"}[cell[:2]]
    numbers = rf"{value:.2f} \[{value - 0.03:.2f}, {value + 0.04:.2f}\]"
    assert re.search(rf"{hook}: [^;]*{position} {numbers}", found.evidence)
    described = [part.partition(":")[0] for part in found.evidence.split("; ")]
    assert described == ["block 1 input", "block 0 conv", "block 1 conv"]
    for part in found.evidence.split("; "):
        assert re.findall(r"(key|value|query|rest) -?\d", part) == ["key", "value", "query", "rest"]


def test_evidence_has_no_negative_zero():
    cells = table(r1_value=0.9, r1_query=-0.001)
    assert "query 0.00 [-0.03, 0.04]" in mechanism(0.95, RIVALS, 0.8, cells).evidence


def test_taps_of_a_convolution_are_not_its_output():
    cells = table(convs=False, r1_key=0.9)
    taps = (
        table(r1_value=0.9).query("hook == 'blocks.1.hook_resid_pre'").assign(hook="blocks.1.hook_conv_taps")
    )
    assert name(pd.concat([cells, taps])) == "direct retrieval"


def test_a_table_without_block_inputs_is_refused():
    """Rather than found to restore in each of no blocks."""
    only = table(c0_value=0.9).query("hook == 'blocks.0.hook_conv'")
    with pytest.raises(ValueError, match=r"every block's hook_resid_pre, got \['blocks.0.hook_conv'\]"):
        mechanism(0.95, RIVALS, 0.8, only)


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ("blocks.1.hook_resid_pre", "block 1 input"),
        ("blocks.0.hook_mixer_out", "block 0 mixer out"),
        ("blocks.3.mixer.hook_ssm_state", "block 3 ssm state"),
        ("ln_final.hook_scale", "ln_final.hook_scale"),
    ],
)
def test_hooks_have_short_names(hook, words):
    assert short_name(hook) == words
