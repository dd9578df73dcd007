"""The part of limits that outlives a process: bans and quotas, as a store of them sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class LedgerEntry(NamedTuple):
    """The ban and the quota of one key of one limit. Times are seconds since the epoch."""

    limit: str
    """The name of the limit."""
    key: str
    """The clients that count together, one line: an address, a network, an identity, or ``*`` for all of a tunnel."""
    banned_until: float
    """0 without a ban."""
    used: int
    """Bytes in the period; 0 for a limit without a quota."""
    period: float
    """When that period began; 0 for a limit without a quota."""


class Ledger(Protocol):
    """The bans and quotas of one tunnel. Every method is called in its relay thread, and none of them blocks."""

    @property
    def has_changed(self) -> bool:
        """True if :meth:`snapshot` has something to return."""

    def snapshot(self, most: int) -> list[LedgerEntry]:
        """Return about so many of the entries that have changed since they were returned last.

        A ban that was cleared has 0 as its end.

        :param most: entries of each limit; a caller that takes few at a time does not hold up the thread.
        """


class Book(Protocol):
    """The keeper of a ledger over a restart. Every method is called in the relay thread, and none of them blocks."""

    def entries(self, limit: str) -> Sequence[LedgerEntry]:
        """Return the entries of a limit that were kept.

        :param limit: its name.
        """

    def changed(self) -> None:
        """Take snapshots of the ledger, soon."""
