"""The documentation site. Its source is the whole repository, so that links hold there and on a forge alike.

    make docs        writes build/site; open build/site/index.html

Notebooks are shown with the outputs that they are stored with: the tests execute them.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

from docstrings import to_rst  # noqa: E402

project = "hooked_ssm"
author = "The hooked_ssm authors"
copyright = f"2026, {author}. MIT licence"
html_title = project

extensions = ["sphinx.ext.autodoc", "myst_nb", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "tutorials/*.ipynb",
    "experiments/**/README.md",
    "README.md",
    "CHANGELOG.md",
]
exclude_patterns = [".venv", ".git", "build", "dist", "runs", "**/node_modules", "**/__pycache__"]

smartquotes = False
nb_execution_mode = "off"
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
copybutton_exclude = ".linenos, .gp, .go"

REDIRECT = (
    '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><title>hooked_ssm</title>'
)


def read_docstring(app, what, name, obj, options, lines):
    lines[:] = to_rst(lines)


def write_redirect(app, error):
    if error is None and app.builder.format == "html":
        Path(app.outdir, "index.html").write_text(REDIRECT + "\n")


def setup(app):
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("build-finished", write_redirect)
