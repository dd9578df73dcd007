"""The end of the server, requested from another thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a relay without clients of its control socket does not need it
    import asyncio

__all__ = ["Stop"]


class Stop:
    """A request to end, from any thread, before or after there is a loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None

    def use(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        """Set this event in this loop."""
        with self._lock:
            self._loop, self._event = loop, event
            if self._is_set:
                event.set()

    def set(self) -> None:
        """Request the end. Idempotent."""
        with self._lock:
            self._is_set = True
            if self._loop is not None and self._event is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._event.set)
