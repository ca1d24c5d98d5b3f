"""Lines, such as curves of training."""

from collections.abc import Mapping, Sequence

from hooked_ssm.plotting.picture import Picture


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
