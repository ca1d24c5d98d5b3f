"""Every Python block of the README and the docs runs; every link in them to a file of the project holds."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("experiments/**/README.md")),
]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run_in_order(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tutorials").symlink_to(ROOT / "tutorials")  # the README's block is run from the top folder
    namespace: dict[str, object] = {}
    for number, block in enumerate(BLOCK.findall(page.read_text())):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


def test_the_readme_has_a_block_that_runs():
    assert BLOCK.findall((ROOT / "README.md").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_hold(page):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []


def test_the_page_of_hooks_is_what_the_code_generates():
    generated = runpy.run_path(str(ROOT / "docs/generate.py"))["hook_page"]()
    assert (ROOT / "docs/hooks.md").read_text() == generated, "run python docs/generate.py"
