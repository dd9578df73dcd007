"""Packages that only some users need, and the extra of the distribution that installs each of them."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {
    "cli": ("click", "pydantic", "rich", "tomli_w"),
    "sandbox": ("landlockpy",),
    "status": ("prometheus_client", "starlette", "uvicorn"),
    "websocket": ("wsproto",),
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


def needed(extra: str, what: str) -> None:
    """Raise unless the packages of an extra are installed.

    :param extra: one of :data:`EXTRAS`.
    :param what: what needs them, for the error.
    :raises RelayError: if one is missing.
    """
    if (problem := missing(extra)) is not None:
        from .errors import RelayError

        raise RelayError(f"{what}: {problem}")
