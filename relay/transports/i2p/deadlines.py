"""Deadlines that any thread may set and drop.

Why there are two kinds: the timers of :mod:`relay.eventloop.loop` belong to the loop's thread, so that another thread
would have to wake it for each change. Streams set and drop deadlines in the threads of their callers, and drop most
long before they are due. Here a change wakes the loop's thread only if the deadline precedes all others. The loop's
timers see one timer for all of them.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import Protocol

from ...eventloop.loop import Loop, Timer

logger = logging.getLogger("relay")

_GRAIN = 0.02  # seconds between two checks, so that thousands that expire one by one cost no more than a few


class Timed(Protocol):
    """Item with at most one deadline at a time."""

    def expire(self, now: float) -> None:
        """Handle the deadline, on the loop's thread; ``now`` is in monotonic seconds."""


class Deadlines:
    """Deadlines on one loop. :meth:`set` and :meth:`drop` are safe from any thread.

    :param loop: its thread calls the items that are due.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._timer = Timer(loop.timers, self._check)
        self._lock = threading.Lock()
        self._due: dict[Timed, float] = {}
        self._next = math.inf  # time of the next check; not after the first deadline

    def set(self, item: Timed, due: float) -> None:
        """Call ``item.expire`` at ``due`` (monotonic seconds), instead of at any time set before."""
        with self._lock:
            self._due[item] = due
            sooner = due < self._next
            if sooner:
                self._next = due
        if sooner:
            self.loop.call(self._arm)

    def drop(self, item: Timed) -> None:
        """Remove the deadline of ``item``, if it has one."""
        with self._lock:
            self._due.pop(item, None)

    def _arm(self) -> None:
        self._timer.start(self._next, time.monotonic())

    def _check(self, now: float) -> None:
        with self._lock:
            expired = [item for item, due in self._due.items() if due <= now]
            for item in expired:
                # Removed under the lock, called without it: an item that sets its next deadline takes the lock again.
                del self._due[item]
            first = min(self._due.values(), default=math.inf)
            self._next = max(first, now + _GRAIN) if self._due else math.inf
        for item in expired:
            try:
                item.expire(now)
            except Exception:
                logger.exception("a deadline failed; this is a bug in relay")
        if self._next != math.inf:
            self._arm()
