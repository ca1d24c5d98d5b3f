"""What the pictures of a claim show, drawn by matplotlib for a README, or by plotly for a page."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from experiments.mechanism import short_name
from hooked_ssm.plotting import Picture

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#7f7f7f", "#bcbd22")
LOGARITHMIC = ("width",)


@dataclass(frozen=True)
class Series:
    """ys over xs, and their intervals; NaN where nothing was measured."""

    name: str
    xs: list[Any]
    ys: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Chart:
    """kind: "lines", over numbers, or "bars", in groups. levels: named horizontal lines."""

    kind: str
    x_label: str
    y_label: str
    series: list[Series]
    title: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return all(math.isnan(y) for one in self.series for y in one.ys)

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the vertical axis: [0, 1], or more where needed."""
        values = [y for one in self.series for y in (*one.ys, *one.low, *one.high) if not math.isnan(y)]
        return min([0.0, *values]) - 0.03, max([1.0, *values]) + 0.03

    def png(self) -> bytes:
        figure = Picture(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.add_subplot()
        categories = self.categories
        for number, one in enumerate(self.series):
            colour = COLOURS[number % len(COLOURS)]
            below = [y - low for y, low in zip(one.ys, one.low)]
            above = [high - y for y, high in zip(one.ys, one.high)]
            errors = [[max(0.0, e) if e == e else 0.0 for e in side] for side in (below, above)]
            if self.kind == "lines":  # beside each other, where they would lie on each other
                xs = [x * (1 + 0.03 * (number - (len(self.series) - 1) / 2)) for x in one.xs]
                style = {"marker": "o", "markersize": 4, "capsize": 2, "color": colour}
                axes.errorbar(xs, one.ys, yerr=errors, label=one.name, **style)
            else:
                width = 0.8 / len(self.series)
                places = [categories.index(x) + (number + 0.5) * width - 0.4 for x in one.xs]
                style = {"capsize": 2, "color": colour, "ecolor": "0.3"}
                axes.bar(places, one.ys, width * 0.92, yerr=errors, label=one.name, **style)
        if self.kind == "bars":
            axes.set_xticks(range(len(categories)), [textwrap.fill(str(x), 16) for x in categories])
            axes.set_xlim(-0.5, len(categories) - 0.5)  # where nothing was measured too
        elif self.x_label in LOGARITHMIC:
            axes.set_xscale("log", base=2)
            axes.set_xticks(categories, [str(x) for x in categories])
        for name, level in self.levels.items():
            axes.axhline(level, color="0.6", linestyle="--", linewidth=1)
            place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom", "fontsize": 8}
            axes.annotate(name, (0.99, level), bbox={"color": "white", "alpha": 0.8, "pad": 1}, **place)
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        axes.set_ylim(*self.bounds)
        axes.set_title(self.title, fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        if len(self.series) > 1:
            figure.legend(loc="outside right center", frameon=False, fontsize=9)
        return figure.png()

    def plotly(self) -> go.Figure:
        figure = go.Figure()
        for number, one in enumerate(self.series):
            errors = {
                "type": "data",
                "symmetric": False,
                "array": [high - y for y, high in zip(one.ys, one.high)],
                "arrayminus": [y - low for y, low in zip(one.ys, one.low)],
            }
            about: dict[str, Any] = {"name": one.name, "y": one.ys, "error_y": errors}
            colour = COLOURS[number % len(COLOURS)]
            if self.kind == "lines":
                lines = go.Scatter(x=one.xs, mode="lines+markers", line={"color": colour}, **about)
                figure.add_trace(lines)
            else:
                figure.add_trace(go.Bar(x=[str(x) for x in one.xs], marker={"color": colour}, **about))
        for name, level in self.levels.items():
            figure.add_hline(level, line={"dash": "dash", "color": "#999", "width": 1}, annotation_text=name)
        figure.update_xaxes(title=self.x_label)
        if self.kind == "lines" and self.x_label in LOGARITHMIC:
            figure.update_xaxes(
                type="log", tickvals=self.categories, ticktext=[str(x) for x in self.categories]
            )
        figure.update_yaxes(title=self.y_label, range=self.bounds)
        return styled(figure).update_layout(title=self.title, showlegend=len(self.series) > 1)

    @property
    def categories(self) -> list[Any]:
        return list(dict.fromkeys(x for one in self.series for x in one.xs))


def styled(figure: go.Figure, height: int = 380) -> go.Figure:
    return figure.update_layout(
        template="simple_white", height=height, margin={"l": 60, "r": 20, "t": 40, "b": 50}, showlegend=True
    )


def by_width(
    table: pd.DataFrame, column: str, label: str, *, title: str = "", levels: str | None = None
) -> Chart:
    """A line an architecture over the width, or bars if there is but one width. levels: a column whose
    largest value is drawn as a line."""
    found = {}
    if levels is not None and levels in table and table[levels].notna().any():
        found = {"best simple rule": float(table[levels].max())}
    if table.width.nunique() == 1:
        return replace(by_category(table, "architecture", column, label), title=title, levels=found)
    return Chart("lines", "width", label, series(table, "architecture", "width", column), title, found)


def by_category(table: pd.DataFrame, category: str, column: str, label: str) -> Chart:
    """Bars in groups: a group a category, a bar an architecture and, if there are several, width."""
    several = category != "width" and table.width.nunique() > 1
    kinds = table.architecture.astype(str) + (" " + table.width.astype(str) if several else "")
    if category == "architecture":
        kinds = "width " + table.width.astype(str)
    return Chart("bars", category, label, series(table.assign(kind=kinds), "kind", category, column))


def series(table: pd.DataFrame, name: str, x: str, column: str) -> list[Series]:
    """One series a name. Intervals: `low` and `high` for the accuracy, `{column}_low` and so on otherwise."""
    ends = ("low", "high") if column == "accuracy" else (f"{column}_low", f"{column}_high")

    def values(group: pd.DataFrame, wanted: str, otherwise: str) -> list[float]:
        for each in (wanted, otherwise):
            if each in group:
                return group[each].astype(float).tolist()
        return [math.nan] * len(group)

    return [
        Series(
            str(kind),
            group[x].tolist(),
            values(group, column, column),
            *(values(group, end, column) for end in ends),
        )
        for kind, group in table.groupby(name, sort=False)
    ]


def heat_map(table: pd.DataFrame) -> go.Figure:
    """Attrib of every hook (rows) at every position (columns), of one run."""
    hooks, positions = list(dict.fromkeys(table.hook)), list(dict.fromkeys(table.position))
    grid = table.pivot(index="hook", columns="position", values="attrib").loc[hooks, positions]
    figure = go.Figure(
        go.Heatmap(
            z=grid.to_numpy(),
            x=positions,
            y=[short_name(hook) for hook in hooks],
            colorscale="RdBu",
            zmin=-1,
            zmax=1,
            text=grid.map(lambda attrib: f"{round(attrib, 2) + 0.0:.2f}").to_numpy(),
            texttemplate="%{text}",
            colorbar={"title": "Attrib"},
        )
    )
    figure.update_yaxes(autorange="reversed")
    return styled(figure, height=140 + 26 * len(hooks))


def training_curve(steps: Sequence[int], accuracies: Sequence[float]) -> go.Figure:
    figure = go.Figure(go.Scatter(x=list(steps), y=list(accuracies), mode="lines", name="accuracy"))
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="accuracy, selection documents", range=(-0.03, 1.03))
    return styled(figure, height=280).update_layout(showlegend=False)
