"""Keeps the bans and quotas of a tunnel over a restart: hands what has changed to the store of the process."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from ..access.ledger import Ledger, LedgerEntry
from ..eventloop.loop import Timer, Timers
from .outlets import LedgerStore

_PAUSE = 1.0  # seconds after a change until it and those that follow are handed over
_PART = 100  # entries handed over in one turn of the loop: half a millisecond
_BREATH = 0.002  # seconds until the next part


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
        self._timer = Timer(timers, self._write_some)

    def entries(self, limit: str) -> Sequence[LedgerEntry]:
        """Return what the store has of a limit."""
        return self._store.entries(self._tunnel, limit)

    def changed(self) -> None:
        """Hand the changes over, soon."""
        if self._timer.due == math.inf:
            now = time.monotonic()
            self._timer.start(now + _PAUSE, now)

    def write(self) -> None:
        """Hand over all that has changed: at the end of the tunnel."""
        self._timer.stop()
        while self._hand_over():
            pass

    def _write_some(self, now: float) -> None:
        if self._hand_over():
            self._timer.start(now + _BREATH, now)

    def _hand_over(self) -> bool:
        """Hand over a part of what has changed; return whether there is more."""
        if self.ledger is None:
            return False
        if entries := self.ledger.snapshot(_PART):
            self._store.put(self._tunnel, entries)
        return self.ledger.has_changed
