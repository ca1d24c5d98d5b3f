"""Evaluations side by side, in a terminal."""

from collections.abc import Mapping

from rich import box
from rich.table import Table

from experiments.evaluation import Evaluation, Scores

CAPTION = (
    "heuristic: the best simple rule. @: Attrib of the last block's input. best conv: the largest Attrib of "
    "a convolution's output at the value or after it. 1 restores all."
)

DIMENSIONS = {
    "distance": "distance from key to value",
    "depth": "depth of the key",
    "place": "place of the value",
}


def summary_table(title: str, rows: Mapping[str, Scores], *, first: str = "model") -> Table:
    """Accuracy, heuristic and attributions of each row; for whole evaluations its mechanism, too."""
    judged = all(isinstance(scores, Evaluation) for scores in rows.values())
    table = Table(title=title, caption=CAPTION, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, min_width=11)
    for number in ("docs", "accuracy", "heuristic", "@ key", "@ value", "@ query", "best conv"):
        if number != "docs" or not judged:
            table.add_column(number, justify="right")
    if judged:
        table.add_column("mechanism", min_width=9)
    for name, scores in rows.items():
        cells = [
            f"{scores.accuracy:.1%}",
            f"{scores.best_heuristic[1]:.1%}",
            *(scores.cell(scores.last_input, position) for position in ("key", "value", "query")),
            scores.best_conv_cell,
        ]
        if isinstance(scores, Evaluation):
            table.add_row(name, *cells, scores.mechanism.name)
        else:
            table.add_row(name, str(scores.docs), *cells)
    return table
