"""The settings of ``make docs``: Sphinx builds the pages of this folder into build/docs.

The site needs no network: furo's fonts and scripts are in its package, and no page loads anything from elsewhere.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

project = "relay"
author = _PROJECT["authors"][0]["name"]
copyright = author  # noqa: A001  (Sphinx reads this name)
release = version = _PROJECT["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
nitpicky = True
_PUBLIC = r"relay\.(\w+|[A-Z]\w*\.\w+|aio\.[\w.]+|testing\.\w+(\.\w+)?|compat\.(zmqssh|rforward)\.[\w.]+)$"
nitpick_ignore_regex = [
    (r"py:.*", rf"(?!{_PUBLIC}).*")
]  # in annotations: types of Python, of dependencies, private ones

myst_heading_anchors = 4  # the same anchors as GitHub's
myst_enable_extensions = ["fieldlist"]
suppress_warnings = ["myst.xref_ambiguous"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}

html_theme = "furo"
html_title = f"relay {release}"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["site.css"]
