"""Tunnels that lead back to themselves, by a name or through another tunnel: what they have made is reset.

A look at the addresses of all connections finds them. It is done when there are twice as many as before, and now and
then while there is no room for another one, so that it costs a client nothing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..eventloop.loop import Loop
from ..streams.rate_limited_log import RateLog
from .connection import Connection

__all__ = ["LoopWatch"]

logger = logging.getLogger("relay")

_FIRST_LOOK = 256  # open connections; a loop has them within a second
_PAUSE = 10.0  # seconds between two looks while there is no room


class LoopWatch:
    """Finds the connections of a tunnel whose clients are its own streams. Belongs to the relay thread.

    :param name: of the tunnel.
    :param loop: of the thread.
    :param own: the connections of the tunnel.
    :param others: returns those of the other tunnels of this process, which belong to other threads.
    """

    __slots__ = ("next_count", "_name", "_loop", "_own", "_others", "_last", "_log")

    def __init__(
        self, name: str, loop: Loop, own: Iterable[Connection], others: Callable[[], Iterable[Connection]]
    ) -> None:
        self.next_count = _FIRST_LOOK
        """The number of open connections at which to look."""
        self._name = name
        self._loop = loop
        self._own = own
        self._others = others
        self._last = -math.inf
        self._log = RateLog(logger, logging.ERROR)

    def look_now_and_then(self, now: float) -> None:
        """Look, unless that was done a moment ago: there is no room for another client."""
        if now - self._last >= _PAUSE:
            self._look(now)

    def look_at_growth(self, now: float) -> None:
        """Look: there are twice as many connections as at the last time."""
        self.next_count *= 2
        self._look(now)

    def _look(self, now: float) -> None:
        self._last = now
        if found := _looped(list(self._own), self._others()):
            self.next_count, self._last = _FIRST_LOOK, -math.inf
            text = "%s: its target leads back to the tunnel: %d connections reset; name another target"
            self._log.log(now, text, self._name, len(found))
            self._loop.call(lambda: _reset(found))  # once the handler of now has done its work


def _reset(found: Iterable[Connection]) -> None:
    now = time.monotonic()
    for connection in found:
        if not connection.is_closed:
            connection.close("overloaded", now)


def _looped(own: list[Connection], others: Iterable[Connection]) -> list[Connection]:
    """Return the connections whose clients are streams of the same tunnel, or have come from these by other tunnels."""
    makers: dict[Any, Connection] = {}  # by the two addresses of its stream to the target: one alone may be used twice
    for connection in (*others, *own):
        target = connection.target
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if target is not None and isinstance(near := target.getsockname(), tuple):
                makers[near[:2], target.getpeername()[:2]] = connection
    ours = set(own)
    return [connection for connection in own if _comes_from(connection, ours, makers)]


def _comes_from(connection: Connection, ours: set[Connection], makers: dict[Any, Connection]) -> bool:
    passed: set[Connection] = set()
    maker: Connection | None = connection
    while maker is not None and maker not in passed:
        passed.add(maker)
        maker = makers.get(_ends(maker))
        if maker in ours:
            return True
    return False


def _ends(connection: Connection) -> Any:
    """Return the two addresses of the client's socket; the header of a balancer may name another one."""
    try:
        far, near = connection.client.getpeername(), connection.client.getsockname()
    except OSError:  # it has ended meanwhile
        return None
    return (far[:2], near[:2]) if isinstance(far, tuple) else None
