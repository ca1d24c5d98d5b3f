"""The documentation site builds without a warning, names all that is public, and fetches nothing."""

import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import hooked_ssm
import tasks
from hooked_ssm import attribution, circuits, loading, mixers, ops, patching, plotting, states, zoo

ROOT = Path(__file__).parents[1]
PUBLIC = (
    hooked_ssm,
    attribution,
    circuits,
    loading,
    mixers,
    ops,
    patching,
    plotting,
    states,
    zoo,
    zoo.paper,
    tasks,
)
FETCHED = re.compile(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]+\"")

to_rst = runpy.run_path(str(ROOT / "docs/docstrings.py"))["to_rst"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-qW",
        "--keep-going",
        "-c",
        "docs",
        "-d",
        str(folder / "doctrees"),
    ]
    built = subprocess.run(
        [*command, ".", str(folder / "site")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return folder / "site"


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    pages = "".join(page.read_text() for page in (site / "docs/api").glob("*.html"))
    described = set(re.findall(r'<dt class="sig sig-object py" id="(?:[^"]+\.)?([^".]+)"', pages))
    names = {
        name
        for module in PUBLIC
        for name in getattr(module, "__all__", [])
        if callable(getattr(module, name)) and not inspect.ismodule(getattr(module, name))
    }
    assert len(names) > 100
    assert names - described == set()


@pytest.mark.slow
def test_the_site_has_every_page_and_every_tutorial_with_its_pictures(site):
    sources = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("tutorials/*.ipynb"), ROOT / "CHANGELOG.md"]
    for source in sources:
        page = site / source.relative_to(ROOT).with_suffix(".html")
        text = page.read_text()
        assert source.suffix == ".md" or ('class="cell_output' in text and "<img" in text), page
    assert "docs/index.html" in (site / "index.html").read_text()


@pytest.mark.slow
def test_reading_the_site_fetches_nothing_from_elsewhere(site):
    found = {page.name: FETCHED.findall(page.read_text()) for page in site.rglob("*.html")}
    assert {name: urls for name, urls in found.items() if urls} == {}


def test_docstrings_become_restructured_text():
    lines = [
        "What it does, with a *star and `code`.",
        "",
        "    y_t = S_t^T q_t",
        "",
        "a, b: two of them",
        "    and more.",
        "**options: others_",
        "",
        "- one",
        "  thing",
        "- another",
        "",
        "Raises ValueError: a sentence",
        "that goes on.",
    ]
    assert to_rst(lines) == [
        r"What it does, with a \*star and ``code``.",
        "",
        "::",
        "",
        "        y_t = S_t^T q_t",
        "",
        "``a``, ``b``",
        "    two of them and more.",
        "",
        "``**options``",
        r"    others\_",
        "",
        "- one thing",
        "- another",
        "",
        "Raises ValueError: a sentence that goes on.",
        "",
    ]
