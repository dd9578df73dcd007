"""The settings of ``make docs``: Sphinx builds the pages of this folder into build/docs.

The site needs no network: furo's fonts and scripts are in its package, and no page loads anything from elsewhere.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

_PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

project = "relay"
author = _PROJECT["authors"][0]["name"]
copyright = author  # noqa: A001  (Sphinx reads this name)
release = version = _PROJECT["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
nitpicky = True
_PUBLIC = r"relay\.(\w+|[A-Z]\w*\.\w+|aio\.[\w.]+|testing\.\w+(\.\w+)?|compat\.(zmqssh|rforward|sshtunnel)\.[\w.]+)$"
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


def setup(app: Sphinx) -> None:
    """Give the search excerpts of its results, also where the site is opened from a file."""
    app.connect("html-page-context", _add_texts)
    app.connect("build-finished", _write_texts)


def _add_texts(app: Sphinx, page: str, *_: object) -> None:
    if page == "search":
        app.add_js_file("search-text.js")
        app.add_js_file("offline-search.js")


def _write_texts(app: Sphinx, error: Exception | None) -> None:
    """Write the text of all pages: a page that is opened from a file may read no other one."""
    if error is not None or app.builder.format != "html":
        return
    texts = {}
    for page in sorted(app.env.found_docs):
        main = Path(app.builder.get_outfilename(page)).read_text().partition('role="main"')[2].partition(">")[2]
        # The sections stay, for the excerpts of hits in one of them.
        text = re.sub(r"<a class=\"headerlink\".*?</a>|<(?!/?section\b)[^>]*>", "", main.partition("</article>")[0])
        texts[app.builder.get_target_uri(page)] = " ".join(text.split())
    script = f"const SEARCH_TEXT = {json.dumps(texts, ensure_ascii=False)};\n"
    Path(app.outdir, "_static", "search-text.js").write_text(script)
