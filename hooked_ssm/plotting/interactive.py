"""Sweeps as pages: every cell says what it is under the pointer, and large ones can be zoomed into."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hooked_ssm.plotting.heat import by_position


def interactive_sweep(
    values: Float[Tensor, "..."],
    tokens: Sequence[str],
    *,
    axes: Sequence[str] = ("layer", "pos"),
    title: str = "",
    limit: float | None = None,
) -> Any:
    """`sweep_map` as a plotly figure: a notebook shows it, `write_html(path)` makes a page of its own."""
    from plotly import graph_objects

    table, rows = by_position(values, tokens, axes)
    bound = limit or float(abs(table[table == table]).max(initial=0)) or 1.0
    columns = [f"{position} {token}" for position, token in enumerate(tokens)]
    heat = graph_objects.Heatmap(
        z=table,
        x=columns,
        y=rows,
        zmin=-bound,
        zmax=bound,
        colorscale="RdBu",
        hovertemplate="%{y}, position %{x}: %{z:.4f}<extra></extra>",
    )
    figure = graph_objects.Figure(heat)
    figure.update_layout(
        title=title,
        yaxis={"autorange": "reversed"},
        template="plotly_white",
        margin={"l": 90, "r": 20, "t": 50 if title else 20, "b": 60},
        height=140 + 26 * len(rows),
    )
    return figure
