"""The page of all claims: it needs nothing else, says what the READMEs say, and a browser draws it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from experiments.claims.definition import all_claims
from experiments.claims.html import tables_of, write_page
from experiments.claims.pages import Measured, kept_tables
from experiments.sweeps.job import Job
from experiments.sweeps.tables import Tables

from ..browser import CHROMIUM, screenshot
from ..small import config
from .made_up import tables

TESTED = {"Attention": 0.9, "Mamba": 0.65, "H3": 0.4}
FIRST = [claim for claim in all_claims() if claim.number in (1, 8)]


class Page(HTMLParser):
    """The figures, as JSON says them, the cells of table rows, and all text outside of scripts."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.figures: list[dict] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.inside, self.in_cell = "", False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href") if name in values]
        if tag == "script":
            self.inside = values.get("type", "code")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.inside = "" if tag == "script" else self.inside
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside == "application/json":
            self.figures.append(json.loads(data))
        elif not self.inside:
            self.text += data
            if self.in_cell:
                self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def made() -> dict[str, Tables]:
    """One run a width of three architectures."""
    cells = {one.condition: one for one in FIRST[0].cells("small")}
    attribs = {"key": 0.0, "value": 0.7, "query": 1.0}
    some = [one for one in cells.values() if dict(one.condition)["architecture"] in TESTED]

    def accuracy(one):
        tested = TESTED[dict(one.condition)["architecture"]]
        return tested + 0.05, tested

    return {"small": tables(some, accuracy, attribs=attribs, convs={"value": 0.4})}


@pytest.fixture(scope="module")
def page(made, tmp_path_factory) -> Path:
    return write_page(FIRST, made, tmp_path_factory.mktemp("page"))


def test_the_page_needs_nothing_else(page):
    read = Page(page)
    assert read.links and all(link.startswith("#") for link in read.links)
    assert not re.search(r"<(link|img|iframe)\b|@import|url\(http", page.read_text().split("<script>")[0])


def test_the_page_has_verdicts_numbers_figures_and_every_run(page, made):
    read = Page(page)
    found = Measured.of(FIRST[0], "small", made["small"])
    assert [
        "1. " + FIRST[0].title,
        "small",
        found.verdict,
        f"{found.runs[0]} of {found.runs[1]}",
    ] in read.rows
    assert ["8. " + FIRST[1].title, "-", "not yet run", "0"] in read.rows
    for check in found.checks:
        assert check.statement in read.text and check.evidence in read.text
        assert f"Published: {check.published}" in read.text
    assert FIRST[0].published in read.text
    assert ["treecall", "Attention", "2", "256", "68.12 %", "95.62 %", "-", "paper, section 5.3"] in read.rows
    measured = [row for row in read.rows if len(row) > 6]
    rows = [row for row in measured if row[:2] in (["Mamba", "16"], ["Attention", "64"])]
    assert [(row[2][:5], row[3]) for row in rows] == [("90.0%", "95.0%"), ("65.0%", "70.0%")]
    runs = made["small"].runs
    assert len(read.figures) == len(found.figures) + 2 * len(runs)
    for run in runs.to_dict("records"):
        assert run["run"] in read.text and json.loads(run["config"]) is not None
    assert "none <here>" in read.text, "what a run says of itself stands as it is"
    heat = next(figure for figure in read.figures if figure["data"][0]["type"] == "heatmap")
    assert heat["layout"]["yaxis"]["autorange"] == "reversed" and heat["data"][0]["x"] == [
        "key",
        "value",
        "query",
    ]


def test_figures_are_there_as_pictures_too(page):
    pictures = sorted(path.name for path in page.parent.glob("*.png"))
    assert pictures == ["ar_accuracy-small-1.png"]
    assert matplotlib.image.imread(page.parent / pictures[0]).std() > 0.02


def test_run_folders_come_before_the_kept_tables(tmp_path, monkeypatch):
    """What is in both is taken from the folders; what is in neither is not there."""
    claim = FIRST[0]
    cell = claim.cells("small")[0]
    monkeypatch.setattr("experiments.sweeps.job.run_name", lambda cfg: cell.name)
    assert Job(config(), docs=24).attempt(tmp_path) is None
    found = tables_of([claim], tmp_path)["small"].runs.set_index("run")
    assert found.loc[cell.name, "steps"] == 12
    assert set(found.index) == {cell.name, *kept_tables()["small"].runs.run}
    alone = tables_of([claim], tmp_path, kept=False)
    assert list(alone["small"].runs.run) == [cell.name] and not len(alone["paper"].runs)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")
def test_a_browser_draws_the_page(page, tmp_path):
    """With figures: their lines have colours that no text has."""
    shown = screenshot(page, tmp_path, width=1100, height=1700)
    picture = (shown * 255).round().astype(int)
    assert picture.shape == (1700, 1100, 3)
    shares = (picture.mean(-1) < 230).mean()
    assert 0.01 < shares < 0.5, "neither empty nor covered"
    for colour in ((0x1F, 0x77, 0xB4), (0x2C, 0xA0, 0x2C), (0xFF, 0x7F, 0x0E)):  # Attention, Mamba, H3
        assert (np.abs(picture - colour).max(-1) <= 3).sum() > 100, f"no line of colour {colour}"
