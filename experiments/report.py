"""Evaluated runs as one self-contained HTML page, and their heat maps as PNG files."""

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from experiments import mechanism
from experiments.evaluation import Evaluation, rivals
from experiments.mechanism import short_name
from experiments.runs import Run, TrainConfig
from hooked_ssm import plotting
from hooked_ssm.plotting import Picture
from hooked_ssm.saving import write_atomically


@dataclass(frozen=True)
class Entry:
    """One model of a report. heatmap, curve: pictures, as PNG files are."""

    name: str
    config: TrainConfig
    evaluation: Evaluation
    result: dict[str, Any]
    heatmap: bytes
    curve: bytes


def entry(name: str, run: Run, evaluation: Evaluation) -> Entry:
    """A run and its evaluation with their pictures."""
    heatmap, curve = attribution_map(name, evaluation).png(), training_curve(name, run).png()
    return Entry(name, run.config(), evaluation, run.result(), heatmap, curve)


def attribution_map(name: str, evaluation: Evaluation) -> Picture:
    """Attrib of every hook (rows) at every position (columns)."""
    grid = evaluation.table.pivot(index="hook", columns="position", values="attrib")
    hooks, positions = list(evaluation.table.hook.unique()), list(evaluation.table.position.unique())
    return plotting.heatmap(
        grid.loc[hooks, positions].to_numpy(),
        rows=[short_name(hook) for hook in hooks],
        columns=positions,
        title=f"{name}: clean activation into the run with a corrupted {evaluation.site}",
        limit=1.0,
        label="Attrib",
    )


def training_curve(name: str, run: Run) -> Picture:
    """Accuracy on held-out documents over training, with the best heuristic that does not solve the task."""
    metrics, result = run.metrics(), run.result()
    named = rivals(result["heuristics"], result["solving_rule"])
    best = max(named, key=lambda rule: named[rule])
    return plotting.curves(
        {name: (metrics.step.tolist(), metrics.test_accuracy.tolist())},
        y_label="accuracy, held-out documents",
        title=name,
        levels={f"heuristic {best}": named[best]},
    )


def write_report(title: str, intro: str, entries: list[Entry], folder: Path) -> Path:
    """Write report.html and one PNG a heat map into `folder`; return the page's path."""
    page = (
        environment()
        .get_template("report.html.j2")
        .render(title=title, intro=intro, entries=entries, rule=rule_text(), strong=mechanism.STRONG)
    )
    path = folder / "report.html"
    write_atomically(path, lambda file: file.write_text(page))
    for item in entries:
        file_name = re.sub(r"[^\w.-]+", "-", item.name.lower()) + ".png"
        write_atomically(folder / file_name, lambda file, data=item.heatmap: file.write_bytes(data))
    return path


def environment() -> Environment:
    """The templates, with filters for pictures and numbers."""
    loader = PackageLoader("experiments")
    found = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.filters["picture"] = lambda data: base64.b64encode(data).decode()
    found.filters["percent"] = lambda share: f"{share:.1%}"
    found.filters["fixed"] = plotting.fixed
    found.filters["short_name"] = short_name
    return found


def rule_text() -> str:
    """The rule that names the mechanism, as its module states it."""
    return (mechanism.__doc__ or "").partition("\n")[2].strip()
