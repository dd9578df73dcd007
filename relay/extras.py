"""Packages that only some users need, and the extra of the distribution that installs each of them."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {
    "cli": ("click", "pydantic", "rich", "tomli_w"),
    "sandbox": ("landlockpy",),
    "status": ("prometheus_client", "starlette", "uvicorn"),
}
"""An extra → the modules that it brings."""


def missing(extra: str) -> str | None:
    """Return what to install for a part of relay, as a part of a line; ``None`` if nothing is missing.

    :param extra: one of :data:`EXTRAS`.
    """
    absent = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if not absent:
        return None
    return f"the Python package {absent[0]} is not installed; run: pip install 'relay-toolkit[{extra}]'"
