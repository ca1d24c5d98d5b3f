"""Heat maps of tables and sweeps."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from hooked_ssm.plotting.picture import Picture

Table = Float[Tensor, "row column"] | Float[np.ndarray, "row column"]


def heatmap(
    values: Float[Tensor, "row column"] | Float[np.ndarray, "row column"],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    limit: float | None = None,
    label: str = "",
) -> Picture:
    """A heat map around 0, with its numbers in the cells.

    limit: the value of the darkest colours; by default the largest magnitude. Raises ValueError if the
    labels do not fit the values.
    """
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=float)
    if array.shape != (len(rows), len(columns)):
        raise ValueError(
            f"values must be [rows, columns] = [{len(rows)}, {len(columns)}], got {list(array.shape)}."
        )
    bound = limit or float(np.abs(array[np.isfinite(array)]).max(initial=0)) or 1.0
    figure = Picture(figsize=(2.6 + 0.85 * len(columns), 1.1 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(array, cmap=matplotlib.colormaps["RdBu"], vmin=-bound, vmax=bound, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    for row, column in np.ndindex(*array.shape):
        value = float(array[row, column])
        colour = "white" if abs(value) > 0.6 * bound else "black"
        axes.text(column, row, fixed(value, 2), ha="center", va="center", color=colour, fontsize=9)
    axes.set_title(title, fontsize=11)
    figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    return figure


def fixed(value: float, places: int) -> str:
    """A number with so many decimal places, and no sign before a zero."""
    return f"{round(value, places) + 0.0:.{places}f}"


def sweep_map(
    values: Float[Tensor, "..."],
    tokens: Sequence[str],
    *,
    axes: Sequence[str] = ("layer", "pos"),
    title: str = "",
    limit: float | None = None,
    label: str = "",
) -> Picture:
    """A heat map of a sweep: tokens from left to right, one row for each entry of the other axes.

    axes: what the values' axes are, as the sweep was asked for them; one is "pos" (or "dest"). NaN (layers
    without the hook) is grey.
    """
    table, rows = by_position(values, tokens, axes)
    figure = Picture(figsize=(2.4 + 0.42 * len(tokens), 1.3 + 0.3 * len(rows)), layout="constrained")
    image = signed_image(figure, table, limit)
    label_tokens(figure.axes[0], tokens)
    figure.axes[0].set_yticks(range(len(rows)), rows)
    figure.axes[0].set_title(title, fontsize=11)
    figure.colorbar(image, ax=figure.axes[0], label=label, shrink=0.9)
    return figure


def by_position(
    values: Float[Tensor, "..."], tokens: Sequence[str], axes: Sequence[str]
) -> tuple[Float[np.ndarray, "row pos"], list[str]]:
    """The values with positions last and the other axes in rows, and the rows' names.

    Raises ValueError if the axes do not fit the values or the tokens the positions.
    """
    at = [k for k, axis in enumerate(axes) if axis in ("pos", "dest", "dest_pos")]
    if values.ndim != len(axes) or len(at) != 1 or values.shape[at[0]] != len(tokens):
        raise ValueError(
            f"values must have one axis for each of {list(axes)}, of which one is 'pos' with the "
            f"{len(tokens)} tokens, got shape {list(values.shape)}."
        )
    table = values.detach().cpu().double().movedim(at[0], -1)
    others = [axis for k, axis in enumerate(axes) if k != at[0]]
    names = [
        ", ".join(f"{axis} {int(i)}" for axis, i in zip(others, index, strict=True))
        for index in np.ndindex(*table.shape[:-1])
    ]
    return table.reshape(-1, len(tokens)).numpy(), names


def signed_image(figure: Figure, table: Float[np.ndarray, "row column"], limit: float | None) -> AxesImage:
    """A table in colours around 0, on axes of its own."""
    bound = limit or float(np.abs(table[np.isfinite(table)]).max(initial=0)) or 1.0
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["RdBu"].with_extremes(bad="0.85")
    image = axes.imshow(np.ma.masked_invalid(table), cmap=colours, vmin=-bound, vmax=bound, aspect="auto")
    axes.tick_params(length=0)
    return image


def label_tokens(axes: Axes, tokens: Sequence[str], *, upright: bool | None = None) -> None:
    """The tokens under the columns, upright where there are many or long ones."""
    if upright is None:
        upright = len(tokens) > 16 or max(map(len, tokens), default=0) > 4
    axes.set_xticks(range(len(tokens)), tokens, rotation=90 if upright else 0, fontsize=9)
