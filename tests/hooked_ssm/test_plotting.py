"""Figures: what is drawn is what was given."""

import io

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from hooked_ssm.plotting import curves, fixed, heatmap

VALUES = np.array([[0.0, 1.0, -0.5], [0.254, -1.2, -0.001]])
LABELS = {"rows": ["block 0", "block 1"], "columns": ["key", "value", "query"]}


def png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "values", [VALUES, torch.tensor(VALUES, requires_grad=True), torch.tensor(VALUES).float()]
)
def test_a_heat_map_shows_its_values_in_colours_and_numbers(values):
    figure = heatmap(values, **LABELS, title="Attrib", label="share")
    axes, bar = figure.axes
    np.testing.assert_allclose(axes.images[0].get_array(), VALUES, rtol=1e-6)
    cells = {tuple(int(x) for x in text.get_position()): text.get_text() for text in axes.texts}
    assert cells == {
        (0, 0): "0.00",
        (1, 0): "1.00",
        (2, 0): "-0.50",
        (0, 1): "0.25",
        (1, 1): "-1.20",
        (2, 1): "0.00",
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == LABELS["columns"]
    assert [label.get_text() for label in axes.get_yticklabels()] == LABELS["rows"]
    assert axes.get_title() == "Attrib" and bar.get_ylabel() == "share"
    assert png(figure).startswith(b"\x89PNG")


def test_the_colours_are_symmetric_around_zero():
    figure = heatmap(VALUES, **LABELS)
    assert figure.axes[0].images[0].get_clim() == (-1.2, 1.2)
    assert heatmap(VALUES, **LABELS, limit=2.0).axes[0].images[0].get_clim() == (-2.0, 2.0)
    assert heatmap(np.zeros((2, 3)), **LABELS).axes[0].images[0].get_clim() == (-1.0, 1.0)


def test_numbers_on_dark_cells_are_white():
    texts = heatmap(VALUES, **LABELS, limit=1.0).axes[0].texts
    white = {text.get_text() for text in texts if to_rgb(text.get_color()) == (1, 1, 1)}
    assert white == {"1.00", "-1.20"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_shown_as_such(value):
    values = VALUES.copy()
    values[1, 2] = value
    figure = heatmap(values, **LABELS)
    assert figure.axes[0].images[0].get_clim() == (-1.2, 1.2)
    assert figure.axes[0].texts[-1].get_text() == f"{value}"
    assert png(figure)
    assert png(heatmap(np.full((2, 3), value), **LABELS))


@pytest.mark.parametrize("shape", [(3, 2), (2, 2), (1, 3)])
def test_labels_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=rf"\[2, 3\], got \[{shape[0]}, {shape[1]}\]"):
        heatmap(np.zeros(shape), **LABELS)


def test_curves_are_drawn_as_given_with_their_levels():
    lines = {"mamba": ([0, 10, 20], [0.1, 0.2, 0.9]), "attention": ([0, 10], [0.1, 1.0])}
    axes = curves(lines, y_label="accuracy", title="AR", levels={"best heuristic": 0.25}).axes[0]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines[:2]}
    assert drawn == {name: [list(point) for point in zip(*xy, strict=True)] for name, xy in lines.items()}
    assert axes.lines[2].get_ydata() == [0.25, 0.25]
    assert [text.get_text() for text in axes.texts] == ["best heuristic"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("step", "accuracy", "AR")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines)


def test_one_curve_needs_no_legend():
    figure = curves({"mamba": ([0, 1], [0.0, 1.0])})
    assert figure.axes[0].get_legend() is None
    assert png(figure).startswith(b"\x89PNG")


def test_drawing_leaves_pyplot_alone():
    """No figure is registered anywhere, so that none has to be closed."""
    import matplotlib.pyplot as plt

    backend, before = matplotlib.get_backend(), plt.get_fignums()
    heatmap(VALUES, **LABELS)
    curves({"mamba": ([0, 1], [0.0, 1.0])})
    assert plt.get_fignums() == before and matplotlib.get_backend() == backend


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (-0.0004, 3, "0.000"),
        (-0.0006, 3, "-0.001"),
        (0.0, 2, "0.00"),
        (-0.0, 2, "0.00"),
        (-1.005, 1, "-1.0"),
        (2.5, 0, "2"),
        (float("nan"), 2, "nan"),
        (float("-inf"), 2, "-inf"),
    ],
)
def test_a_rounded_zero_has_no_sign(value, places, text):
    assert fixed(value, places) == text
    if "0.000"[: places + 2] != text:
        assert fixed(value, places) == f"{value:.{places}f}"
