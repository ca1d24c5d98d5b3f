"""Pictures: a document with its tree and what is asked of it, and a grammar's rules.

Both are matplotlib figures that a notebook shows as they are, and that `save` writes as SVG, PNG or PDF.
"""

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path as MplPath

from tasks.grammar import Grammar
from tasks.relations import RELATIONS
from tasks.tree_documents import TreeDocuments
from tasks.treecall import AssociativeTreecall
from tasks.writing import write_atomically

KEY, VALUE, PLAIN, FAINT = "#d95f02", "#1b6ca8", "#f4f4f2", "#9a9a96"
TEXT = "#222222"
TITLE: dict[str, Any] = {"fontsize": 10, "color": TEXT, "loc": "left"}
STEP = 0.46  # inches from one token to the next


class Drawing(Figure):
    """A figure that a notebook shows, without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=120)
        return buffer.getvalue()

    def save(self, path: str | Path) -> None:
        """Write the picture in the format of the path's suffix; the same picture gives the same SVG file."""
        path = Path(path)
        kind = path.suffix.lower()
        if kind not in (".svg", ".png", ".pdf"):
            raise ValueError(f"a picture is written as .svg, .png or .pdf, got {path.name!r}.")
        # the date, and ids drawn from the system, would make every file a new one
        options: dict[str, Any] = {"metadata": {"Date": None}} if kind == ".svg" else {"dpi": 160}
        with matplotlib.rc_context({"svg.hashsalt": "tasks"}):
            write_atomically(path, lambda file: self.savefig(file, format=kind[1:], **options))


def draw_document(task: AssociativeTreecall, docs: TreeDocuments, number: int = 0) -> Drawing:
    """Document `number`: its tokens in a row, the tree of its body above them, and the question below.

    Key and query are orange, value and answer blue; the thick line is the path from key to value in the tree.
    Other words with the key's label have an orange rim.
    """
    if not 0 <= number < len(docs):
        raise IndexError(f"document {number} of {len(docs)} was asked for.")
    doc = docs[number : number + 1].to("cpu")
    where = {name: int(position) for name, position in doc.positions.items()}
    n_tokens = where["target_item"] + 2
    tokens = doc.tokens[0, :n_tokens].tolist()
    names = [task.token_name(token) for token in tokens]
    parent = doc.parent[0, :n_tokens].tolist()
    words = range(1, where["divider"])
    level = {word: len(path_up(word, parent)) for word in words}
    top = max(level.values()) + 1
    y = {word: float(top - level[word]) for word in words}
    arcs = [(where["query"], where["key"], KEY), (where["value"], where["target_item"], VALUE)]
    bottom = max(arc_depth(start, stop) for start, stop, _ in arcs) + 0.25
    size = 9 if max(map(len, names)) <= 4 else 7

    width, height = max(5.0, STEP * (n_tokens + 1)), 0.58 * (top + 1.1 + bottom)
    figure = Drawing(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot(xlim=(-0.8, n_tokens - 0.2), ylim=(-bottom, top + 0.6))
    for word in words:
        axes.plot([word, word], [0, y[word]], color=FAINT, lw=0.8, ls=(0, (1, 3)), zorder=1)
        if parent[word] >= 0:
            draw_edge(axes, word, parent[word], y, color=FAINT, lw=1.2, zorder=2)
    path = path_between(where["key"], where["value"], parent)
    for one, other in pairwise(path):
        below, above = (one, other) if parent[one] == other else (other, one)
        draw_edge(axes, below, above, y, color=KEY, lw=3.2, zorder=3)

    colours = {where["key"]: KEY, where["value"]: VALUE}
    for word in words:
        rim = KEY if tokens[word] == tokens[where["query"]] else TEXT
        write_token(axes, word, y[word], names[word], size, colours.get(word, "white"), rim)
    colours |= {where["query"]: KEY, where["target_item"]: VALUE}
    for place, name in enumerate(names):
        write_token(axes, place, 0.0, name, size, colours.get(place, PLAIN), FAINT)
    for start, stop, colour in arcs:
        draw_arc(axes, start, stop, colour)
    for name, place in (("query", where["query"]), ("answer", where["target_item"])):
        axes.text(place, 0.42, name, ha="center", va="bottom", fontsize=8, color=colours[place])
    axes.set_title(
        f"{RELATIONS[int(doc.relation[0])]} of {names[where['key']]}: {names[where['value']]}   "
        f"(distance {int(doc.distance[0])}, depth of the key {int(doc.query_depth[0])})",
        **TITLE,
    )
    axes.axis("off")
    return figure


def draw_grammar(grammar: Grammar) -> Drawing:
    """The nonterminals by level, with a line from each to those in its rules, the stronger the likelier.

    A square's shade is the nonterminal's mean number of words, on a logarithmic scale.
    """
    of_level = {level: [] for level in sorted(set(grammar.levels))}
    for x, level in enumerate(grammar.levels):
        of_level[level].append(x)
    widest = max(map(len, of_level.values()))
    figure = Drawing(
        figsize=(max(6.4, 2.4 + 0.62 * widest), 1.2 + 0.62 * len(of_level)), layout="constrained"
    )
    axes = figure.add_subplot()
    at = {
        x: ((place + 1) * (widest + 1) / (len(row) + 1), -height)
        for height, row in enumerate(of_level.values())
        for place, x in enumerate(row)
    }
    for x, rules in enumerate(grammar.rules):
        expected: dict[int, float] = {}
        for rule in rules:
            for symbol in rule.symbols:
                if symbol >= grammar.n_terminals:
                    child = symbol - grammar.n_terminals
                    expected[child] = expected.get(child, 0.0) + rule.probability
        for child, weight in expected.items():
            xs, ys = zip(at[x], at[child], strict=True)
            alpha, width = min(1.0, 0.06 + 0.7 * weight), 0.6 + 1.4 * weight
            axes.plot(xs, ys, color=VALUE, alpha=alpha, lw=width, zorder=1)
    lengths = np.log(np.array(grammar.mean_lengths))
    shades = matplotlib.colormaps["YlOrBr"](0.08 + 0.6 * lengths / max(float(lengths.max()), 1e-9))
    for x, (across, down) in at.items():
        box = {"boxstyle": "round,pad=0.28", "fc": shades[x], "ec": TEXT, "lw": 0.8}
        axes.text(across, down, f"N{x}", ha="center", va="center", fontsize=8, color=TEXT, bbox=box, zorder=2)
    for height, level in enumerate(of_level):
        axes.text(-0.4, -height, f"level {level}", ha="right", va="center", fontsize=8, color=FAINT)
    axes.set(xlim=(-1.4, widest + 1.2), ylim=(-len(of_level) + 0.4, 0.6))
    axes.set_title(
        f"{grammar.n_nonterminals} nonterminals, {sum(map(len, grammar.rules))} rules, {grammar.n_terminals} "
        f"terminals\nsentences of {grammar.shortest} to {grammar.longest} words, {grammar.mean_length:.1f} "
        f"on average; darker squares give more of them",
        **TITLE,
    )
    axes.axis("off")
    return figure


def path_up(word: int, parent: list[int]) -> list[int]:
    """The heads above a word, from its own to the root."""
    path = []
    while parent[word] >= 0:
        word = parent[word]
        path.append(word)
    return path


def path_between(first: int, last: int, parent: list[int]) -> list[int]:
    """The words on the way from one word to another in the tree, both included."""
    up, down = [first, *path_up(first, parent)], [last, *path_up(last, parent)]
    common = next(word for word in up if word in down)
    return up[: up.index(common) + 1] + down[: down.index(common)][::-1]


def draw_edge(axes: Axes, below: int, above: int, y: dict[int, float], **line: Any) -> None:
    """From a word up to the bar of its siblings, along it, and up to their parent."""
    bar = y[above] - 0.5
    axes.plot([below, below, above, above], [y[below], bar, bar, y[above]], solid_joinstyle="round", **line)


def write_token(axes: Axes, x: int, y: float, name: str, size: int, fill: str, rim: str) -> None:
    filled = fill in (KEY, VALUE)
    box = {
        "boxstyle": "round,pad=0.28",
        "fc": fill,
        "ec": fill if filled else rim,
        "lw": 1.8 if rim == KEY else 0.8,
    }
    colour = "white" if filled else TEXT
    axes.text(x, y, name, ha="center", va="center", fontsize=size, color=colour, bbox=box, zorder=4)


def arc_depth(start: int, stop: int) -> float:
    """How far below the row of tokens an arrow from one to another reaches."""
    return 0.32 + min(1.6, 0.35 + 0.05 * abs(stop - start))


def draw_arc(axes: Axes, start: int, stop: int, colour: str) -> None:
    top, down = -0.34, -0.34 - (arc_depth(start, stop) - 0.34) / 0.75  # a cubic reaches 3/4 of the way
    curve = MplPath(
        [(start, top), (start, down), (stop, down), (stop, top)],
        [MplPath.MOVETO, MplPath.CURVE4, MplPath.CURVE4, MplPath.CURVE4],
    )
    axes.add_patch(
        FancyArrowPatch(path=curve, arrowstyle="-|>", mutation_scale=10, color=colour, lw=1.4, zorder=1)
    )
