"""The bans and quotas of the tunnels of a command. A tunnel that has them runs in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..engine.tunnel import Tunnel

if TYPE_CHECKING:  # they are needed for a request only
    from ..engine.ledgers import KeptEntry
    from ..operations.ledgers import BanStatus, QuotaStatus
    from .member import Snapshot

__all__ = ["bans_of", "clear_all", "quotas_of"]


def bans_of(members: Iterable[Snapshot], most: int) -> list[BanStatus]:
    """Return bans of tunnels, those that last longest first.

    :param most: bans at most.
    """
    from ..engine import ledgers
    from ..operations.ledgers import BanStatus

    found = [
        BanStatus(tunnel=name, limit=entry.limit, key=entry.key, until=entry.banned_until)
        for name, tunnel in _tunnels(members)
        for entry in ledgers.bans_of(tunnel, most)
    ]
    return sorted(found, key=lambda one: -one.until)[:most]


def quotas_of(members: Iterable[Snapshot]) -> list[QuotaStatus]:
    """Return what was used of the quotas of tunnels, the largest part first."""
    from ..operations.ledgers import MOST_ROWS, QuotaStatus

    found = [
        QuotaStatus(tunnel=name, limit=entry.limit, key=entry.key, used=entry.used, quota=quota, since=entry.period)
        for name, _, (entry, quota) in _entries(members)
        if entry.used and quota
    ]
    return sorted(found, key=lambda one: -one.used / one.quota)[:MOST_ROWS]


def clear_all(members: Iterable[Snapshot], kind: str, key: str) -> int:
    """Forget the bans or the quotas of a key.

    :param kind: ``bans`` or ``quotas``.
    :returns: how many were forgotten.
    """
    from ..engine.ledgers import clear

    found = [
        (tunnel, entry.limit)
        for _, tunnel, (entry, _) in _entries(members)
        if entry.key == key and (entry.banned_until if kind == "bans" else entry.used)
    ]
    return sum(clear(tunnel, limit, key) for tunnel, limit in found)


def _entries(members: Iterable[Snapshot]) -> Iterator[tuple[str, Tunnel, KeptEntry]]:
    from ..engine.ledgers import entries_of

    for name, tunnel in _tunnels(members):
        for entry in entries_of(tunnel):
            yield name, tunnel, entry


def _tunnels(members: Iterable[Snapshot]) -> Iterator[tuple[str, Tunnel]]:
    """Yield the tunnels that this process relays, with their names."""
    for member in members:
        if member.opened is not None and isinstance(tunnel := member.opened.tunnel, Tunnel):
            yield member.name, tunnel
