"""Every tutorial runs from top to bottom, with the solutions of its exercises, and draws what is stored."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
SOLUTION = re.compile(r"<summary>.*?</summary>\n\n```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")
LARGEST = 400_000  # bytes of a stored notebook

every_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def shown(notebook: nbformat.NotebookNode) -> list[set[str]]:
    """What kinds of output each code cell has: "stream", "image/png", ... (of a picture, that alone)"""
    kinds = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            each = [set(output.get("data", {output.output_type})) for output in outputs]
            kinds.append({k for kinds in each for k in kinds if k == "image/png" or "image/png" not in kinds})
    return kinds


@pytest.mark.slow
@every_tutorial
def test_tutorial_runs(path):
    notebook = nbformat.read(path, as_version=4)
    stored, cells = shown(notebook), len(notebook.cells)
    solutions = [code for cell in notebook.cells for code in SOLUTION.findall(cell.source)]
    assert solutions, "it has no exercise"
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    notebook.cells = notebook.cells[:cells]
    assert shown(notebook) == stored, f"run python tutorials/execute.py {path.stem}"


@every_tutorial
def test_there_is_a_picture_in_every_section(path):
    """A section begins at a heading; those at the end, after the last code, need none."""
    notebook = nbformat.read(path, as_version=4)
    last_code = max(n for n, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    sections: dict[str, bool] = {}
    for cell in notebook.cells[: last_code + 1]:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            sections[cell.source.split("\n")[0]] = False
        elif cell.cell_type == "code" and sections:
            drawn = any("image/png" in output.get("data", {}) for output in cell.outputs)
            sections[[*sections][-1]] |= drawn
    assert sections and all(sections.values()), sections


@every_tutorial
def test_stored_tutorials_are_small_and_their_links_hold(path):
    assert path.stat().st_size < LARGEST
    cells = nbformat.read(path, as_version=4).cells
    links = [link for cell in cells if cell.cell_type == "markdown" for link in LINK.findall(cell.source)]
    assert [link for link in links if not (path.parent / link).exists()] == []


@every_tutorial
def test_tutorials_open_with_what_the_reader_will_know(path):
    first = nbformat.read(path, as_version=4).cells[0].source
    assert first.startswith("# ") and "at the end" in first.lower()


def test_there_are_tutorials():
    assert TUTORIALS
