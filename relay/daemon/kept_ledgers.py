"""The bans and quotas of the tunnels of a command. A tunnel that has them runs in this process."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from ..engine import ledgers
from ..engine.ledgers import KeptEntry, clear, entries_of
from ..engine.tunnel import Tunnel
from .ledgers import MOST_ROWS, BanStatus, QuotaStatus
from .member import Snapshot

__all__ = ["bans_of", "clear_all", "quotas_of"]


def bans_of(members: Iterable[Snapshot], most: int) -> list[BanStatus]:
    """Return bans of tunnels, those that last longest first.

    :param most: bans at most.
    """
    found = (
        BanStatus(tunnel=name, limit=entry.limit, key=entry.key, until=entry.banned_until)
        for name, tunnel in _tunnels(members)
        for entry in ledgers.bans_of(tunnel, most)
    )
    return heapq.nlargest(most, found, key=lambda one: one.until)


def quotas_of(members: Iterable[Snapshot]) -> list[QuotaStatus]:
    """Return what was used of the quotas of tunnels, the largest part first."""
    found = (
        QuotaStatus(tunnel=name, limit=entry.limit, key=entry.key, used=entry.used, quota=quota, since=entry.period)
        for name, (entry, quota) in _entries(members)
        if entry.used and quota
    )
    return heapq.nlargest(MOST_ROWS, found, key=lambda one: one.used / one.quota)


def clear_all(members: Iterable[Snapshot], kind: str, key: str) -> int:
    """Forget the bans or the quotas of a key.

    :param kind: ``bans`` or ``quotas``.
    :returns: how many were forgotten.
    """
    return sum(clear(tunnel, kind, key) for _, tunnel in _tunnels(members))


def _entries(members: Iterable[Snapshot]) -> Iterator[tuple[str, KeptEntry]]:
    for name, tunnel in _tunnels(members):
        for entry in entries_of(tunnel):
            yield name, entry


def _tunnels(members: Iterable[Snapshot]) -> Iterator[tuple[str, Tunnel]]:
    """Yield the tunnels that this process relays, with their names."""
    for member in members:
        if member.opened is not None and isinstance(tunnel := member.opened.tunnel, Tunnel):
            yield member.name, tunnel
