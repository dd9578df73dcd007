"""The bans and quotas of a tunnel, as operators see and clear them.

A table may have 100,000 keys. So the relay thread is asked about a few at a time, and serves clients in between.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..access.ledger import LedgerEntry
from ..access.limiter import Limiter
from ..access.table import Entry
from .changes import in_thread
from .relay_thread import RelayThread
from .tunnel import Tunnel

_PART = 200  # entries that the relay thread returns in one turn of its loop: half a millisecond


class KeptEntry(NamedTuple):
    """The ban or the quota of one key."""

    entry: LedgerEntry
    quota: int | None
    """The bytes of a period that the limit allows; ``None`` without a quota."""


def entries_of(tunnel: Tunnel) -> Iterator[KeptEntry]:
    """Return what is banned, and what was used of quotas; nothing more once the tunnel is closing."""
    for limiter in _limiters_of(tunnel):
        quota = limiter.limit.terms.quota
        table = _table(tunnel, limiter)
        for first in range(0, len(table), _PART):
            for entry in _entries(tunnel, limiter, table[first : first + _PART]):
                yield KeptEntry(entry, quota)


def bans_of(tunnel: Tunnel, most: int) -> Sequence[LedgerEntry]:
    """Return bans, those that last longest first.

    :param tunnel: the tunnel; nothing if it is closing.
    :param most: bans at most.
    """
    gate = tunnel._relay.gate
    if gate is None or not gate.has_bans:  # a tunnel without bans is not disturbed
        return []
    found: list[LedgerEntry] = []
    for limiter in in_thread(tunnel, _limiters) or ():
        banned = _banned(tunnel, limiter, most)
        for first in range(0, len(banned), _PART):
            found += _entries(tunnel, limiter, banned[first : first + _PART])
    return heapq.nlargest(most, (one for one in found if one.banned_until), key=lambda one: one.banned_until)


def clear(tunnel: Tunnel, kind: str, key: str) -> int:
    """Forget the bans or the quotas of a key. A limit that has both forgets both.

    :param kind: ``bans``, also for a client that a rate rejects, or ``quotas``.
    :param key: the clients that count together, or the address of one of them.
    :returns: how many entries that has changed.
    """

    def change(relay: RelayThread, now: float) -> int:
        return sum(limiter.clear(key) for limiter in _limiters(relay, now) if _has(limiter, kind, key, now))

    return (in_thread(tunnel, change) or 0) if tunnel._relay.gate is not None else 0


def _limiters_of(tunnel: Tunnel) -> Sequence[Limiter]:
    return (in_thread(tunnel, _limiters) or ()) if tunnel._relay.gate is not None else ()  # else it may stay dormant


def _limiters(relay: RelayThread, now: float) -> tuple[Limiter, ...]:
    gate = relay.entrance.gate
    return gate.limiters() if gate is not None else ()


def _table(tunnel: Tunnel, limiter: Limiter) -> Sequence[Entry]:
    return in_thread(tunnel, lambda relay, now: limiter.table.all()) or ()


def _banned(tunnel: Tunnel, limiter: Limiter, most: int) -> Sequence[Entry]:
    return in_thread(tunnel, lambda relay, now: limiter.banned(most, now)) or ()


def _entries(tunnel: Tunnel, limiter: Limiter, table: Sequence[Entry]) -> Sequence[LedgerEntry]:
    return in_thread(tunnel, lambda relay, now: limiter.entries(now, table)) or ()


def _has(limiter: Limiter, kind: str, key: str, now: float) -> bool:
    """Return whether a limit rejects a key, by a ban or its rate, or has counted bytes of it."""
    entry = limiter.find(key)
    if entry is None:
        return False
    if kind == "bans" and limiter.is_too_fast(entry, now):
        return True
    return any(one.banned_until if kind == "bans" else one.used for one in limiter.entries(now, [entry]))
