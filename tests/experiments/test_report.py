"""The report: one page that needs nothing else, with every number of its evaluations."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from experiments import mechanism
from experiments.report import attribution_map, entry, training_curve, write_report

from .browser import CHROMIUM, screenshot

NAMES = {"attention": "Attention", "mamba": "Mamba <2 layers> & more"}


class Page(HTMLParser):
    """links, pictures, the text of every table row, and all text."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.pictures: list[bytes] = []
        self.rows: list[list[str]] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.source = path.read_text()
        self.in_cell = False
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert tag not in ("script", "link", "iframe", "object")
        self.links += [values[name] for name in ("src", "href", "srcset", "action") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "img":
            assert values["alt"]
            kind, _, data = values["src"].partition(",")
            assert kind == "data:image/png;base64"
            self.pictures.append(base64.b64decode(data, validate=True))
        if tag == "tr":
            self.rows.append([])
        self.in_cell = tag in ("td", "th") or (self.in_cell and tag == "a")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.texts.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def evaluations(evaluated):
    """With a number that rounds to zero from below."""
    found = {preset: evaluation for preset, (_, evaluation) in evaluated.items()}
    table = found["mamba"].table.copy()
    table.loc[0, ["attrib", "low", "high"]] = [-0.0004, -0.0123, 0.0234]
    return found | {"mamba": replace(found["mamba"], table=table)}


@pytest.fixture
def page(evaluated, evaluations, tmp_path) -> Page:
    entries = [entry(NAMES[preset], evaluated[preset][0], evaluations[preset]) for preset in NAMES]
    path = write_report("How do they <recall>?", "Two models & no more.", entries, tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    return Page(path)


def test_the_page_needs_nothing_else(page):
    assert page.links and all(link.startswith(("data:", "#")) for link in page.links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page.source)
    assert not re.search(r"url\(|@import", page.source)
    assert {link[1:] for link in page.links if link.startswith("#")} == set(page.ids)


def test_every_number_of_every_table_is_on_the_page(page, evaluations):
    for preset, found in evaluations.items():
        rule = found.best_heuristic[1]
        assert [
            NAMES[preset],
            f"{found.accuracy:.1%}",
            f"{rule:.1%}",
            f"{found.p_clean:.3f}",
            f"{found.p_corrupted:.3f}",
            found.mechanism.name,
            found.mechanism.evidence,
        ] in page.rows
        for heuristic, value in found.heuristics.items():
            assert [heuristic, f"{value:.1%}"] in page.rows
        for cell in found.table.to_dict("records"):
            numbers = [
                f"{cell[column]:.3f}".replace("-0.000", "0.000")
                for column in ("attrib", "low", "high", "restored")
            ]
            hook = mechanism.short_name(cell["hook"])
            assert [hook, cell["position"], *numbers] in page.rows
    assert len([row for row in page.rows if len(row) == 6]) == 2 + sum(
        len(e.table) for e in evaluations.values()
    )


def test_no_number_is_a_negative_zero(page):
    assert ["block 0 input", "key", "0.000", "-0.012", "0.023"] in [row[:5] for row in page.rows]
    assert not [text for text in page.texts if re.search(r"-0\.0+(?!\d)", text)]


def test_names_and_text_stand_as_they_are(page):
    assert "How do they <recall>?" in page.texts and "Two models & no more." in page.texts
    assert page.texts.count(NAMES["mamba"]) == 2


def test_the_page_says_how_each_run_was_made_and_how_mechanisms_are_named(page, evaluated):
    for preset, (run, _) in evaluated.items():
        assert f'"name": "{preset}"' in page.source.replace("&#34;", '"')
        assert f"{run.result()['step']:.0f} steps in" in page.text
    for name in mechanism.MECHANISMS:
        assert f"{name}: " in page.text
    assert "Attrib >= 0.5" in page.text and mechanism.STRONG == 0.5 and mechanism.MARGIN == 0.1


def test_the_pictures_are_a_heat_map_and_a_curve_of_each_run(page, tmp_path):
    assert len(page.pictures) == 4
    for data in page.pictures:
        (tmp_path / "picture.png").write_bytes(data)
        picture = matplotlib.image.imread(tmp_path / "picture.png")
        assert min(picture.shape[:2]) > 200 and picture.std() > 0.02
    files = sorted((tmp_path / "out").glob("*.png"))
    assert [path.name for path in files] == ["attention.png", "mamba-2-layers-more.png"]
    assert [path.read_bytes() for path in files] == [page.pictures[0], page.pictures[2]]


def test_the_heat_map_has_a_row_a_hook_in_the_order_of_the_table(evaluations):
    found = evaluations["mamba"]
    axes = attribution_map("Mamba", found).axes[0]
    hooks = list(found.table.hook.unique())
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        mechanism.short_name(hook) for hook in hooks
    ]
    positions = ["key", "value", "value+1", "value+2", "divider", "query", "rest"]
    assert [label.get_text() for label in axes.get_xticklabels()] == positions
    cells = found.table.set_index(["hook", "position"]).attrib
    expected = [[cells[hook, position] for position in positions] for hook in hooks]
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    assert axes.images[0].get_clim() == (-1.0, 1.0)


def test_the_curve_is_the_runs_with_its_best_heuristic(evaluated):
    run, _ = evaluated["mamba"]
    line, level = training_curve("Mamba", run).axes[0].lines
    assert line.get_xdata().tolist() == [5, 10, 12]
    assert line.get_ydata().tolist() == run.metrics().test_accuracy.tolist()
    rivals = {k: v for k, v in run.result()["heuristics"].items() if k != "induction"}
    assert level.get_ydata()[0] == max(rivals.values()) < 1


def test_a_page_is_replaced_in_one_step(evaluated, tmp_path, monkeypatch):
    run, found = evaluated["mamba"]
    path = write_report("first", "", [entry("Mamba", run, found)], tmp_path)
    before = path.read_bytes()
    write_report("second", "", [entry("Mamba", run, found)], tmp_path)
    assert path.read_bytes() != before and b"second" in path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mamba.png", "report.html"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")
def test_a_browser_shows_the_page(page, tmp_path):
    picture = screenshot(tmp_path / "out" / "report.html", tmp_path, width=1000, height=1600)
    assert min(picture.shape[:2]) > 500
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100, "text and a heat map have many colours"
    assert 0.02 < (picture.mean(-1) < 0.9).mean() < 0.9, "neither empty nor covered"
