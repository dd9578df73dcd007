"""The end of a drain that is spread: the open connections end one after the other, not all at the deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..eventloop.loop import Timer, Timers

if TYPE_CHECKING:  # parts of one machine name each other
    from .connection import Connection

_STEP = 0.1  # seconds between two ends at least, each of several connections if there are many


class SpreadEnd:
    """Ends connections at equal distances until a deadline, the oldest first. Belongs to the relay thread.

    The deadline itself is the caller's. Each step looks at what is left, so that connections which end by themselves
    leave more time to the others.

    :param connections: returns those that are open, the oldest first.
    :param timers: of the relay thread's loop.
    """

    __slots__ = ("_connections", "_due", "_timer")

    def __init__(self, connections: Callable[[], Sequence[Connection]], timers: Timers) -> None:
        self._connections = connections
        self._due = 0.0
        self._timer = Timer(timers, self._end_some)

    def start(self, due: float, seconds: float, now: float) -> None:
        """Begin to end connections some time before a deadline; replaces an earlier call.

        :param due: the deadline, in monotonic seconds.
        :param seconds: how long before it the first one ends; at once if that has passed; 0 for none at all.
        :param now: monotonic seconds.
        """
        self._due = due
        if seconds > 0:
            self._timer.start(max(now, due - seconds), now)
        else:
            self._timer.stop()

    def stop(self) -> None:
        """End no connection any more."""
        self._timer.stop()

    def _end_some(self, now: float) -> None:
        connections, left = self._connections(), self._due - now
        if not connections or left <= 0:
            return
        step = max(left / len(connections), _STEP)
        self._timer.start(now + step, now)  # first: the end of the last connection stops it
        for connection in connections[: max(1, round(len(connections) * step / left))]:
            connection.close("closed", now)
