"""Deadlines of many things, most of which are over long before."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import Protocol

from ...eventloop.loop import Loop, Timer

__all__ = ["Clock", "Timed"]

logger = logging.getLogger("relay")

_GRAIN = 0.02  # seconds between two looks at least, so that thousands that expire one by one cost no more than a few


class Timed(Protocol):
    """What can have one deadline at a time."""

    def expire(self, now: float) -> None:
        """The time has come; in the pump's thread."""


class Clock:
    """Deadlines that are set and dropped in any thread, which wakes the pump's for one alone that is before all others.

    :param loop: the pump's, which calls those whose time has come.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._timer = Timer(loop.timers, self._look)
        self._lock = threading.Lock()
        self._due: dict[Timed, float] = {}
        self._next = math.inf  # when there is to be a look; not after the first deadline

    def set(self, item: Timed, due: float) -> None:
        """Let ``item.expire`` be called at ``due`` (monotonic seconds), in place of any time set before."""
        with self._lock:
            self._due[item] = due
            sooner = due < self._next
            if sooner:
                self._next = due
        if sooner:
            self.loop.call(self._arm)

    def drop(self, item: Timed) -> None:
        """Forget the deadline of ``item``, if it has one."""
        with self._lock:
            self._due.pop(item, None)

    def _arm(self) -> None:
        self._timer.start(self._next, time.monotonic())

    def _look(self, now: float) -> None:
        with self._lock:
            expired = [item for item, due in self._due.items() if due <= now]
            for item in expired:
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
