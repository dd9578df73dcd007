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
    package = absent[0].replace("_", "-")
    return f"the Python package {package} is not installed; run: pip install 'relay-toolkit[{extra}]'"


def needed(extra: str, what: str) -> None:
    """Raise unless the packages of an extra are installed.

    :param extra: one of :data:`EXTRAS`.
    :param what: what needs them, for the error.
    :raises AddressError: if one is missing: no address of that kind works.
    """
    if (problem := missing(extra)) is not None:
        from .errors import AddressError

        raise AddressError(f"{what}: {problem}")
