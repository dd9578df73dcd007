"""The files of the status page, and the headers that restrict what a browser does with them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

FILES: Mapping[str, tuple[str, str]] = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The path of each file, its name in the package, and its media type."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every answer."""

_FOLDER = Path(__file__).with_name("static")


@functools.cache
def content(path: str) -> tuple[bytes, str]:
    """Return the content of a file, and its media type.

    :param path: a key of :data:`FILES`.
    """
    name, kind = FILES[path]
    return (_FOLDER / name).read_bytes(), kind
