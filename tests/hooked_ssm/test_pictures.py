"""Pictures of sweeps and of what mixers do: what is drawn is what was given, at the tokens it is of."""

import numpy as np
import pytest
import torch

from hooked_ssm.plotting import attention_map, interactive_sweep, state_map, sweep_map, tap_map

TOKENS = ["BOS", "k", "v", "EOS"]
SWEEP = torch.arange(24.0).view(2, 4, 3) - 6  # layer, pos, tap


def labels(axes, which):
    return [text.get_text() for text in getattr(axes, f"get_{which}ticklabels")()]


def test_a_sweep_has_a_column_a_token_and_a_row_for_everything_else():
    axes = sweep_map(SWEEP, TOKENS, axes=("layer", "pos", "tap"), title="taps").axes[0]
    drawn = axes.images[0].get_array()
    assert drawn.shape == (6, 4) and axes.get_title() == "taps"
    rows = labels(axes, "y")
    assert labels(axes, "x") == TOKENS and rows[0] == "layer 0, tap 0" and rows[5] == "layer 1, tap 2"
    for row, name in enumerate(rows):
        layer, tap = (int(part.split()[1]) for part in name.split(", "))
        np.testing.assert_array_equal(drawn[row], SWEEP[layer, :, tap])
    assert axes.images[0].get_clim() == (-17, 17)


def test_layers_without_a_hook_are_neither_drawn_nor_counted():
    values = SWEEP[..., 0].clone()
    values[1] = torch.nan
    image = sweep_map(values, TOKENS).axes[0].images[0]
    assert image.get_array().mask[1].all() and not image.get_array().mask[0].any()
    assert image.get_clim() == (-6, 6)


def test_a_page_of_a_sweep_is_the_same_table():
    figure = interactive_sweep(SWEEP, TOKENS, axes=("layer", "pos", "tap"), title="taps")
    heat = figure.data[0]
    drawn = sweep_map(SWEEP, TOKENS, axes=("layer", "pos", "tap")).axes[0]
    np.testing.assert_array_equal(heat.z, drawn.images[0].get_array())
    assert list(heat.y) == labels(drawn, "y") and list(heat.x) == ["0 BOS", "1 k", "2 v", "3 EOS"]
    assert (heat.zmin, heat.zmax) == (-17, 17)


@pytest.mark.parametrize("draw", [sweep_map, interactive_sweep])
@pytest.mark.parametrize("axes", [("layer", "pos"), ("layer", "tap", "pos"), ("layer", "head", "tap")])
def test_axes_that_do_not_fit_are_refused(draw, axes):
    with pytest.raises(ValueError, match=r"one is 'pos' with the 4 tokens, got shape \[2, 4, 3\]"):
        draw(SWEEP, TOKENS, axes=axes)


def test_matrices_are_drawn_without_the_future():
    pattern = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    figure = attention_map(pattern, TOKENS, names=["one", "two"], title="heads")
    for axes, matrix, name in zip(figure.axes[:2], pattern, ["one", "two"], strict=True):
        drawn = axes.images[0].get_array()
        assert (drawn.mask == ~torch.ones(4, 4).tril().bool().numpy()).all() and axes.get_title() == name
        np.testing.assert_allclose(drawn[~drawn.mask], matrix.numpy()[~drawn.mask])
        assert labels(axes, "x") == labels(axes, "y") == TOKENS
        assert axes.images[0].get_clim()[0] == 0
    assert attention_map(-pattern[0], TOKENS).axes[0].images[0].get_clim()[0] == -float(pattern[0].max())
    with pytest.raises(ValueError, match=r"\[head, dest, src\] with 4 tokens, got \[2, 3, 3\]"):
        attention_map(pattern[:, :3, :3], TOKENS)
    with pytest.raises(ValueError, match="2 matrices need as many names, got 1"):
        attention_map(pattern, TOKENS, names=["one"])


def test_states_are_drawn_with_their_lengths_and_the_entries_that_vary():
    states = torch.zeros(4, 3, 2)
    states[2:, 1, 1] = 2.0  # moves at the value, and stays
    states[3, 0, 0] = -1.0
    figure = state_map(states, TOKENS, entries=2, title="S")
    top, below = figure.axes[:2]
    np.testing.assert_allclose(top.lines[0].get_ydata(), [0, 0, 2, 5**0.5])
    assert [bar.get_height() for bar in top.patches] == [0, 0, 2, 1]
    np.testing.assert_array_equal(below.images[0].get_array(), [[0, 0, 1, 1], [0, 0, 0, -1]])
    assert below.get_ylabel() == "2 of 6 entries" and labels(below, "x") == TOKENS
    with pytest.raises(ValueError, match=r"\[pos, ...\] with 4 tokens, got \[3, 3, 2\]"):
        state_map(states[:3], TOKENS)


def test_taps_are_drawn_by_their_lengths():
    taps = torch.zeros(4, 2, 3)
    taps[2, 1] = torch.tensor([3.0, 0.0, 4.0])
    axes = tap_map(taps, TOKENS).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0, 0, 0, 0], [0, 0, 5, 0]])
    assert labels(axes, "y") == ["tap 0", "tap 1"] and labels(axes, "x") == TOKENS
    with pytest.raises(ValueError, match=r"\[pos, tap, channel\] with 4 tokens, got \[3, 2, 3\]"):
        tap_map(taps[:3], TOKENS)


def test_pictures_are_saved_as_files(tmp_path):
    picture = sweep_map(SWEEP[..., 0], TOKENS)
    for suffix, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        picture.save(tmp_path / f"x.{suffix}")
        assert (tmp_path / f"x.{suffix}").read_bytes().startswith(start)
    with pytest.raises(ValueError, match=r"saved as .png or .svg, got 'x.pdf'"):
        picture.save(tmp_path / "x.pdf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png", "x.svg"]
