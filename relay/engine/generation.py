"""The connections that a change of the route or of the listener has found open, and what is left for them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..eventloop.loop import Timer, Timers
from .spread import SpreadEnd

if TYPE_CHECKING:  # parts of one machine name each other
    from .connection import Connection


class Generation:
    """Connections from before a change. Belongs to the relay thread.

    :param connections: all that were open.
    :param over: called once, when the last of them has ended.
    :param timers: of the relay thread's loop.
    """

    __slots__ = ("_connections", "_over", "_spread", "_timer")

    def __init__(self, connections: Sequence[Connection], over: Callable[[], object] | None, timers: Timers) -> None:
        self._connections = dict.fromkeys(connections)
        self._over = over
        self._timer = Timer(timers, self._end)
        self._spread = SpreadEnd(lambda: tuple(self._connections), timers)

    @property
    def is_over(self) -> bool:
        """True once the last connection has ended."""
        return not self._connections

    def start(self, seconds: float | None, now: float, spread: float = 0.0) -> None:
        """Reset the connections after a while.

        :param seconds: until then; ``None`` or infinite for never.
        :param now: monotonic seconds.
        :param spread: seconds before that over which they are reset one after the other.
        """
        if self.is_over:
            self.finish()
        elif seconds is None or seconds == math.inf:
            return
        elif seconds > 0:
            self._timer.start(now + seconds, now)
            self._spread.start(now + seconds, spread, now)
        else:
            self._end(now)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        if self._connections.pop(connection, self) is None and self.is_over:
            self.finish()

    def finish(self) -> None:
        """Wait for no connection any more. Idempotent."""
        self._timer.stop()
        self._spread.stop()
        over, self._over = self._over, None
        if over is not None:
            over()

    def _end(self, now: float) -> None:
        for connection in tuple(self._connections):
            connection.close("closed", now)


class Generations:
    """The generations of a tunnel that have connections left. Belongs to the relay thread.

    :param timers: of the relay thread's loop.
    """

    __slots__ = ("living", "_timers")

    def __init__(self, timers: Timers) -> None:
        self.living: list[Generation] = []
        self._timers = timers

    def begin(
        self,
        connections: Sequence[Connection],
        over: Callable[[], object] | None,
        seconds: float | None,
        spread: float = 0.0,
    ) -> None:
        """Begin with connections; the parameters are those of :class:`Generation` and of its ``start``."""
        made = Generation(connections, over, self._timers)
        self.living.append(made)
        made.start(seconds, time.monotonic(), spread)
        self._forget()

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        for generation in tuple(self.living):
            generation.remove(connection)
        self._forget()

    def _forget(self) -> None:
        self.living = [generation for generation in self.living if not generation.is_over]
