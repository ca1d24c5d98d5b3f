"""Every claim and every run as one HTML page that needs nothing else, and the figures as PNG files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from experiments.claims.definition import Claim
from experiments.claims.figures import heat_map, training_curve
from experiments.claims.pages import (
    Measured,
    described,
    kept_tables,
    measured,
    number_rows,
)
from experiments.claims.published import PLACES, published_numbers, published_rows
from experiments.claims.recipes import SIZES
from experiments.sweeps.tables import Tables, gather
from hooked_ssm.saving import write_atomically


def tables_of(claims: Sequence[Claim], runs: Path, *, kept: bool = True) -> dict[str, Tables]:
    """For each size what the run folders say, and, where they say nothing, the committed tables."""
    known = kept_tables() if kept else {}
    found = {}
    for size in SIZES:
        names = [cell.name for claim in claims for cell in claim.cells(size)]
        found[size] = known.get(size, Tables.empty()).updated(gather(runs, names))
    return found


def write_page(claims: Sequence[Claim], tables: dict[str, Tables], folder: Path) -> Path:
    """Write report.html and a PNG a figure into `folder`; return the page's path."""
    sections = []
    for claim in claims:
        of_sizes = [found for found in measured(claim, tables).values() if found.runs[0]]
        published = published_rows(published_numbers(claim))
        sections.append(
            {"claim": claim, "sizes": [section(found) for found in of_sizes], "published": published}
        )
        for found in of_sizes:
            for number, chart in enumerate(found.figures):
                name = f"{claim.name}-{found.size}-{number + 1}.png"
                write_atomically(folder / name, lambda path, chart=chart: path.write_bytes(chart.png()))
    runs = [run for size, part in tables.items() for run in runs_of(size, part)]
    environment = Environment(
        loader=PackageLoader("experiments"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("claims.html.j2").render(
        sections=sections, runs=runs, places=PLACES, plotly=Markup(get_plotlyjs())
    )
    path = folder / "report.html"
    write_atomically(path, lambda file: file.write_text(page))
    return path


def section(found: Measured) -> dict[str, Any]:
    """What the page says of a claim at one size."""
    return {
        "found": found,
        "described": described(found.cells),
        "rows": number_rows(found),
        "figures": [embedded(chart.plotly()) for chart in found.figures],
    }


def runs_of(size: str, tables: Tables) -> list[dict[str, Any]]:
    """What the page says of each run."""
    cells = {run: rows for run, rows in tables.attributions.groupby("run")}
    curves = {run: rows for run, rows in tables.curves.groupby("run")}
    found = []
    for row in tables.runs.to_dict("records"):
        figures = []
        if row["run"] in cells:
            rows: Any = cells[row["run"]]
            figures.append(embedded(heat_map(rows[rows.procedure == "unambiguous"])))
        if row["run"] in curves:
            curve = curves[row["run"]].sort_values("step")
            figures.append(embedded(training_curve(curve.step.tolist(), curve.test_accuracy.tolist())))
        config = json.dumps(json.loads(row["config"]), indent=1)
        found.append(row | {"size": size, "figures": figures, "config": config})
    return found


def embedded(figure: Any) -> Markup:
    """A figure's JSON, for a script element."""
    return Markup(figure.to_json().replace("<", "\\u003c"))
