"""The tunnels of a file that are written as they were when it was last read: they need no second check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checking import Entry

_SHARED = ("hops", "defaults")  # the tables that decide on the meaning of every tunnel


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it was written, and what was read from it without a problem.

    :param document: its tables.
    :param no_secrets: why there may be no secrets in it; empty if there may.
    :param entries: its tunnels.
    """

    document: Mapping[str, Any]
    no_secrets: str
    entries: tuple[Entry, ...]

    def unchanged(self, document: Mapping[str, Any], no_secrets: str) -> dict[str, Entry]:
        """Return the tunnels that mean the same in the file as it is written now, by name.

        :param document: its tables.
        :param no_secrets: why there may be no secrets in it now.
        """
        before, now = self.document.get("tunnels"), document.get("tunnels")
        # A file that others can read now may not hold secrets, so that each tunnel must be checked again.
        is_same = no_secrets == self.no_secrets
        # A hop or a default may change any tunnel; which ones is not worth finding out.
        is_same = is_same and all(_text(document.get(name)) == _text(self.document.get(name)) for name in _SHARED)
        if not is_same or not isinstance(before, dict) or not isinstance(now, dict):
            return {}
        same = (entry for entry in self.entries if entry.name in now)
        return {entry.name: entry for entry in same if _text(now[entry.name]) == _text(before[entry.name])}


def _text(value: object) -> str:
    """Return what is equal for equal values of the same type: in Python, ``true``, 1 and 1.0 are equal."""
    return repr(value)
