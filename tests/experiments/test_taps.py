"""Single taps of short convolutions."""

import pandas as pd
import pytest

from experiments.evaluation import evaluate_run
from experiments.taps import TAPS, tap_table
from experiments.training import TEST_SEED_OFFSET, train

from .small import config, model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(config("mamba", steps=150), tmp_path_factory.mktemp("taps") / "run", progress=False)


def test_in_the_first_block_only_the_tap_that_reaches_the_key_carries_anything(run):
    """There the key is all that differs: that tap is the whole convolution output, the others are nothing."""
    seed = run.config().seed + TEST_SEED_OFFSET
    table = tap_table(run, docs=60, seed=seed)
    assert table is not None and len(table) == 2 * TAPS * 3  # layers, taps, positions
    assert table.attrib.notna().all(), table.to_string()
    cells = table[table.hook == "blocks.0.hook_conv_taps"].set_index(["tap", "position"])
    whole = evaluate_run(run, docs=60, seed=seed).table.set_index(["hook", "position"])
    for after, position in enumerate(("value", "value+1", "value+2")):
        for tap in range(TAPS):
            row = cells.loc[(tap, position)]
            if tap == after + 1:
                expected = whole.loc[("blocks.0.hook_conv", position)]
                for name in ("attrib", "low", "high"):
                    assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4)
                assert abs(row.attrib) > 1e-3, "which is something"
            else:
                assert row.attrib == pytest.approx(0, abs=1e-5)


def test_models_without_a_short_convolution_have_no_table(evaluated, tmp_path):
    assert tap_table(evaluated["attention"][0], docs=8, seed=0) is None
    bare = train(config("mamba", model=model("mamba", d_conv=0)), tmp_path, progress=False)
    assert tap_table(bare, docs=8, seed=0) is None


def test_a_narrow_convolution_has_as_many_taps_as_it_is_wide(tmp_path):
    narrow = train(config("mamba", model=model("mamba", d_conv=2)), tmp_path, progress=False)
    table = tap_table(narrow, docs=8, seed=0)
    assert isinstance(table, pd.DataFrame) and sorted(set(table.tap)) == [0, 1]
