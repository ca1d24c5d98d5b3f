"""What the page on tasks shows is what its code prints."""

import contextlib
import io
import re
from pathlib import Path

from tasks import Task

PAGE = (Path(__file__).parents[2] / "docs/tasks.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def stripped(text):
    """Without the blanks that end a line."""
    return "\n".join(line.rstrip() for line in text.splitlines())


def test_every_block_prints_what_is_shown_below_it():
    namespace: dict[str, object] = {}
    try:
        for code, shown in BLOCK.findall(PAGE):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "docs/tasks.md", "exec"), namespace)
            assert stripped(printed.getvalue()) == stripped(shown)
    finally:
        Task.registry.pop("predecessor", None)


def test_every_task_of_the_package_is_shown():
    for task in Task.registry.values():
        if task.__module__.startswith("tasks."):
            assert f"`{task.__name__}`" in PAGE and f"{task.__name__}(" in PAGE
