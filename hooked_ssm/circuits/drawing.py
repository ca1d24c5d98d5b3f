"""A circuit drawn: positions from left to right, layers from bottom to top, edges as wide as their scores."""

import html
import json
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from hooked_ssm.circuits.edges import EdgeIndex
from hooked_ssm.circuits.roles import ELSEWHERE
from hooked_ssm.patching.names import layer_of
from hooked_ssm.plotting import Picture

WIDTH, HEIGHT = 1.15, 0.46  # of a node's place, in inches
BOX = 0.92, 0.26  # of a node
POSITIVE, NEGATIVE, INK = "#2166ac", "#b2182b", "#222222"
FILLS = {"embed": "#f1e7d0", "tap": "#d9ead3", "state": "#f8d7da", "write": "#fce5cd", "logits": "#e8e0f0"}
NAMES = {"mlp_out": "MLP", "mixer_out": "mixer out", "embed": "embed", "pos_embed": "position"}

Node = tuple[str, str, str]  # hook, role, part
Point = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """place: the centre of every node. columns: left end and width of each role's. bands: bottom and top of
    each layer's. In inches."""

    place: dict[Node, Point]
    columns: dict[str, tuple[float, float]]
    bands: dict[int, tuple[float, float]]
    size: tuple[float, float]


def short_name(hook: str, part: str) -> str:
    """What is written on a node."""
    name = hook.rsplit(".", 1)[-1].removeprefix("hook_").removeprefix("ssm_")
    if part.startswith("tap"):
        return part
    name = NAMES.get(name, name.replace("_", " "))
    return f"{name}, {part}" if part else name


def arrows_of(edges: pd.DataFrame) -> list[tuple[Node, Node, float]]:
    """Writer, reader and score of every edge in a table of `Circuit.edges`."""
    return [
        ((a, i, s), (b, j, t), score) for a, i, s, b, j, t, score in edges.itertuples(index=False, name=None)
    ]


def layout(edges: pd.DataFrame, index: EdgeIndex) -> Layout:
    """Hooks in the order in which they fire, roles in theirs, all others first; logits above the query."""
    top = index.hooks[-1]
    arrows = arrows_of(edges)
    nodes = {node for writer, reader, _ in arrows for node in (writer, reader)}
    read = next((writer[1] for writer, reader, _ in arrows if reader[0] == top), index.roles[0])
    at = {node: read if node[0] == top else node[1] for node in nodes}
    roles = [role for role in [ELSEWHERE, *index.roles[:-1]] if role in at.values()]
    hooks = [hook for hook in index.hooks if any(node[0] == hook for node in nodes)]
    cells: dict[tuple[str, str], list[Node]] = {}
    for node in sorted(nodes, key=lambda node: (len(node[2]), node)):
        cells.setdefault((node[0], at[node]), []).append(node)

    columns, x = {}, 0.75
    for role in roles:
        count = max(len(cell) for (_, other), cell in cells.items() if other == role)
        columns[role] = x, count * WIDTH + 0.7
        x += columns[role][1]
    place: dict[Node, Point] = {}
    heights, y, before = {}, 0.65, layer_of(hooks[0]) if hooks else None
    for hook in hooks:
        y += 0.22 if layer_of(hook) != before else 0
        before, heights[hook] = layer_of(hook), y
        y += HEIGHT
    for (hook, role), cell in cells.items():
        left, width = columns[role]
        for number, node in enumerate(cell):
            place[node] = left + width / 2 + (number - (len(cell) - 1) / 2) * WIDTH, heights[hook]
    bands = {}
    for hook in hooks:
        layer = layer_of(hook)
        if layer is not None:
            low, high = bands.get(layer, (heights[hook], heights[hook]))
            bands[layer] = min(low, heights[hook]), max(high, heights[hook])
    return Layout(place, columns, bands, (max(x, 3.0) + 0.15, y + 0.35))


def draw(edges: pd.DataFrame, index: EdgeIndex, title: str = "") -> Picture:
    found = layout(edges, index)
    figure = Picture(figsize=found.size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, found.size[0])
    axes.set_ylim(0, found.size[1])
    axes.set_axis_off()
    for layer, (low, high) in found.bands.items():
        corner, height = (0.1, low - HEIGHT / 2), high - low + HEIGHT
        axes.add_patch(
            Rectangle(corner, found.size[0] - 0.2, height, facecolor="#f4f4f4", edgecolor="none", zorder=0)
        )
        axes.text(0.32, (low + high) / 2, f"block {layer}", rotation=90, ha="center", va="center", fontsize=9)
    for role, (left, width) in found.columns.items():
        axes.text(left + width / 2, 0.22, role, ha="center", va="center", fontsize=10, weight="bold")
    if title:
        axes.text(found.size[0] / 2, found.size[1] - 0.2, title, ha="center", va="center", fontsize=11)
    largest = max(edges["score"].abs().max(), 1e-12) if len(edges) else 1.0
    for number, (writer, reader, score) in enumerate(arrows_of(edges)):
        begin, end, rad = arc(found.place[writer], found.place[reader], found.place.values())
        size = (abs(score) / largest) ** 0.5
        arrow = FancyArrowPatch(
            begin,
            end,
            connectionstyle=f"arc3,rad={rad}",
            arrowstyle="-|>,head_length=4,head_width=2",
            linewidth=0.7 + 3.3 * size,
            color=POSITIVE if score >= 0 else NEGATIVE,
            alpha=0.45 + 0.45 * size,
            shrinkA=0,
            shrinkB=0,
            zorder=2,
        )
        arrow.set_gid(f"edge-{number}")
        axes.add_patch(arrow)
    for number, (node, (x, y)) in enumerate(found.place.items()):
        name = short_name(node[0], node[2])
        fill = next((colour for word, colour in FILLS.items() if word in name), "white")
        box = FancyBboxPatch(
            (x - BOX[0] / 2, y - BOX[1] / 2),
            *BOX,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=fill,
            edgecolor=INK,
            linewidth=0.8,
            zorder=3,
        )
        box.set_gid(f"node-{number}")
        axes.add_patch(box)
        text = axes.text(x, y - 0.01, name, ha="center", va="center", fontsize=8, color=INK, zorder=4)
        text.set_gid(f"name-{number}")
    return figure


def arc(begin: Point, end: Point, others: Iterable[Point]) -> tuple[Point, Point, float]:
    """Where an arrow leaves and arrives, and how it bends: around what stands between in the same column, and
    from side to side where the next column is hardly higher."""
    (x, y), (to_x, to_y) = begin, end
    up = (x, y + BOX[1] / 2), (to_x, to_y - BOX[1] / 2)
    side = 1 if to_x > x else -1
    others = list(others)
    if abs(to_x - x) < 1.2 * WIDTH:  # columns are further apart
        between = any(y < there < to_y and abs(across - x) < BOX[0] / 2 for across, there in others)
        length = up[1][1] - up[0][1]
        bends = between and abs(to_x - x) < BOX[0] / 2
        return *up, 2 * min(0.75, 0.5 + 0.05 * length) / length if bends else 0.0
    beside = any(there == to_y and 0 < side * (across - x) < side * (to_x - x) for across, there in others)
    if to_y - y < 2.5 * HEIGHT and not beside:
        return (x + side * BOX[0] / 2, y), (to_x - side * BOX[0] / 2, to_y), 0.0
    return (x + side * BOX[0] / 2, y), up[1], 0.0


STYLE = """
body { font-family: sans-serif; margin: 8px; color: #222 }
svg { max-width: 100%; height: auto }
#says { min-height: 1.3em; font-size: 14px }
g[id^=edge] { cursor: pointer }
"""
SCRIPT = """
const byId = id => document.getElementById(id);
const says = byId("says"), start = says.textContent;
function show(edges, text) {
  edges_all.forEach((_, k) => { byId("edge-" + k).style.opacity = edges.includes(k) ? 1 : 0.08; });
  says.textContent = text;
}
function clear() {
  edges_all.forEach((_, k) => { byId("edge-" + k).style.opacity = ""; });
  says.textContent = start;
}
function listen(element, edges, text) {
  if (!element) return;
  element.addEventListener("mouseenter", () => show(edges, text));
  element.addEventListener("mouseleave", clear);
}
edges_all.forEach((edge, k) => listen(byId("edge-" + k), [k], edge.says));
nodes_all.forEach((says, n) => {
  const mine = edges_all.map((edge, k) => k).filter(k => edges_all[k].ends.includes(n));
  ["node-", "name-"].forEach(kind => listen(byId(kind + n), mine, says));
});
"""


def page(edges: pd.DataFrame, index: EdgeIndex, title: str) -> str:
    """One HTML file with the drawing and nothing to load."""
    nodes = list(layout(edges, index).place)
    rows = [
        {
            "ends": [nodes.index(writer), nodes.index(reader)],
            "says": f"{full_name(*writer)}  \u2192  {full_name(*reader)}:  {score:.3f}",
        }
        for writer, reader, score in arrows_of(edges)
    ]
    svg = draw(edges, index).svg().decode()
    svg = svg[svg.index("<svg") :]
    names = json.dumps([full_name(*node) for node in nodes])
    data = f"const edges_all = {json.dumps(rows)};\nconst nodes_all = {names};".replace("</", "<\\/")
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>\n"
        f"<title>{html.escape(title)}</title>\n"
        f"<style>{STYLE}</style>\n</head><body>\n<div id='says'>{html.escape(title)}</div>\n{svg}\n"
        f"<script>\n{data}\n{SCRIPT}</script>\n</body></html>\n"
    )


def full_name(hook: str, role: str, part: str) -> str:
    where = f" at {role}" if role else ""
    return f"{hook}{f' ({part})' if part else ''}{where}"


def framed(page: str) -> str:
    """A page inside another, of which it sees nothing."""
    return f'<iframe srcdoc="{html.escape(page)}" style="width: 100%; height: 720px; border: 0"></iframe>'
