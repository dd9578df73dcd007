"""The bans and quotas of a tunnel, as operators see and clear them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..access.ledger import LedgerEntry
from .changes import in_thread
from .relay_thread import RelayThread
from .tunnel import Tunnel

__all__ = ["KeptEntry", "bans_of", "clear", "entries_of"]


class KeptEntry(NamedTuple):
    """The ban or the quota of one key."""

    entry: LedgerEntry
    quota: int | None
    """The bytes of a period that the limit allows; ``None`` without a quota."""


def entries_of(tunnel: Tunnel) -> Sequence[KeptEntry]:
    """Return what is banned, and what was used of quotas; nothing if the tunnel is closing."""

    def look(relay: RelayThread, now: float) -> list[KeptEntry]:
        gate = relay.entrance.gate
        if gate is None:
            return []
        quotas = gate.quotas()
        return [KeptEntry(entry, quotas.get(entry.limit)) for entry in gate.entries()]

    return in_thread(tunnel, look) or []


def bans_of(tunnel: Tunnel, most: int) -> Sequence[LedgerEntry]:
    """Return bans, those that last longest first.

    :param tunnel: the tunnel; nothing if it is closing.
    :param most: bans at most.
    """

    def look(relay: RelayThread, now: float) -> list[LedgerEntry]:
        gate = relay.entrance.gate
        return [] if gate is None else gate.bans(most)

    gate = tunnel._relay.entrance.gate
    if gate is None or not gate.has_bans:  # a tunnel without bans is not disturbed
        return []
    return in_thread(tunnel, look) or []


def clear(tunnel: Tunnel, limit: str, key: str) -> int:
    """Forget the ban and the quota of a key.

    :param limit: the name of the limit.
    :param key: the clients that count together.
    :returns: how many entries that has changed.
    """

    def change(relay: RelayThread, now: float) -> int:
        gate = relay.entrance.gate
        return 0 if gate is None else gate.clear(limit, key)

    return in_thread(tunnel, change) or 0
