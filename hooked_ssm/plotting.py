"""Pictures of interventions and of training, as matplotlib figures."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor


class Picture(Figure):
    """A figure that a notebook shows as it is, without pyplot."""

    def _repr_png_(self) -> bytes:
        return self.png()

    def png(self) -> bytes:
        """The picture as a PNG file."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=120)
        return buffer.getvalue()

    def svg(self) -> bytes:
        """The picture as an SVG file: the same bytes for the same picture."""
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "hooked_ssm"}):
            self.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()


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


def curves(
    lines: Mapping[str, tuple[Sequence[int | float], Sequence[int | float]]],
    *,
    x_label: str = "step",
    y_label: str = "",
    title: str = "",
    levels: Mapping[str, float] | None = None,
) -> Picture:
    """Lines by name, each (xs, ys), with named horizontal levels such as heuristics."""
    figure = Picture(figsize=(6.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, (xs, ys) in lines.items():
        axes.plot(xs, ys, label=name)
    for name, level in (levels or {}).items():
        axes.axhline(level, color="0.6", linestyle="--", linewidth=1)
        right = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axes.annotate(name, (1.0, level), fontsize=8, **right)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


def fixed(value: float, places: int) -> str:
    """A number with so many decimal places, and no sign before a zero."""
    return f"{round(value, places) + 0.0:.{places}f}"
