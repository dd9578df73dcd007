"""The end of the server, requested from another thread."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a relay without clients of its control socket does not need it
    import asyncio

__all__ = ["Stop"]


class Stop:
    """A request to end, from any thread, before or after there is a loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None

    def use(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        """Set this event in this loop."""
        with self._lock:
            self._loop, self._event = loop, event
            if self._requested.is_set():
                event.set()

    def set(self) -> None:
        """Request the end. Idempotent."""
        with self._lock:
            self._requested.set()
            if self._loop is not None and self._event is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed already
                    self._loop.call_soon_threadsafe(self._event.set)

    def is_set(self) -> bool:
        """Return whether the end was requested."""
        return self._requested.is_set()

    def wait(self, seconds: float) -> None:
        """Wait for the request, for so many seconds at most."""
        self._requested.wait(seconds)
