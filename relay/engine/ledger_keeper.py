"""Keeps the bans and quotas of a tunnel over a restart: hands what has changed to the store of the process."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from ..access.ledger import Ledger, LedgerEntry
from ..eventloop.loop import Timer, Timers

__all__ = ["LedgerKeeper", "keeper_of", "set_store"]

_PAUSE = 1.0  # seconds after a change until it and those that follow are handed over


class LedgerStore(Protocol):
    """The store; see :class:`relay.access.store.Store`."""

    def entries(self, tunnel: str, /) -> Sequence[LedgerEntry]:
        """Return the entries of a tunnel."""

    def put(self, tunnel: str, entries: Iterable[LedgerEntry], /) -> None:
        """Write entries, later."""


_store: LedgerStore | None = None


def set_store(store: LedgerStore | None) -> None:
    """Keep the bans and quotas of all tunnels that are made from now on in a store; ``None`` for none."""
    global _store  # noqa: PLW0603  (one for the process, as the file is)
    _store = store


def keeper_of(tunnel: str, timers: Timers) -> LedgerKeeper | None:
    """Return the keeper of a tunnel; ``None`` if there is no store.

    :param tunnel: its name.
    :param timers: of its loop.
    """
    return LedgerKeeper(tunnel, _store, timers) if _store is not None else None


class LedgerKeeper:
    """The book of one ledger; see :class:`relay.access.ledger.Book`. Belongs to the relay thread.

    :param tunnel: the name of the tunnel.
    :param store: where entries are kept.
    :param timers: of the thread's loop.
    """

    def __init__(self, tunnel: str, store: LedgerStore, timers: Timers) -> None:
        self.ledger: Ledger | None = None
        self._tunnel = tunnel
        self._store = store
        self._timer = Timer(timers, self.write)

    def entries(self) -> Sequence[LedgerEntry]:
        """Return what the store has."""
        return self._store.entries(self._tunnel)

    def changed(self) -> None:
        """Hand the changes over, soon."""
        if self._timer.due == math.inf:
            now = time.monotonic()
            self._timer.start(now + _PAUSE, now)

    def write(self, now: float) -> None:
        """Hand over what has changed."""
        self._timer.stop()
        if self.ledger is not None and (entries := self.ledger.snapshot()):
            self._store.put(self._tunnel, entries)
