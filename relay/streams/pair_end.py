"""relay's end of a socketpair whose other end is the socket of a stream: waiting, hang-up, and what ends it."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable

from ..eventloop.background import Watch
from ..eventloop.loop import Handler, Loop, Timer
from ..eventloop.sockets import set_to_reset
from ..eventloop.unix_reset import socketpair

__all__ = ["BETWEEN", "LINGER", "PairEnd"]

BETWEEN = 256 << 10  # bytes on their way to a holder who does not read; Linux doubles it
LINGER = 60.0  # seconds without progress until a stream that its holder has closed is given up


class PairEnd:
    """One end of a socketpair; the holder of a stream has the other one. Belongs to the thread of its loop.

    :param loop: watches the socket.
    :param on_event: called with the events of the socket and the time, as any handler of a loop.
    :param moved: returns a number that changes while bytes leave.
    :param expired: called with the time when the holder has closed the stream and nothing has moved for
        :data:`LINGER` seconds.
    :raises OSError: if there are no descriptors left.
    """

    __slots__ = ("socket", "gone", "_expired", "_holder", "_loop", "_mark", "_moved", "_timer", "_watch")

    def __init__(
        self, loop: Loop, on_event: Handler, moved: Callable[[], int], expired: Callable[[float], object]
    ) -> None:
        self.socket, holder = socketpair()
        self._holder: socket.socket | None = holder
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BETWEEN)
        self.gone = False
        """Whether the holder has closed the stream."""
        self._loop = loop
        self._moved: Callable[[], int] | None = moved
        self._expired: Callable[[float], object] | None = expired
        self._mark = -1  # what had moved at the last look
        self._watch = Watch(self.socket, loop, on_event)
        self._timer: Timer | None = Timer(loop.timers, self._look)

    def hand_over(self) -> socket.socket:
        """Return the holder's end; once."""
        holder, self._holder = self._holder, None
        assert holder is not None
        return holder

    @property
    def mask(self) -> int:
        """The events that are waited for."""
        return self._watch.mask

    def want(self, mask: int) -> None:
        """Wait for these events; errors and hang-ups always."""
        self._watch.set_interest(mask)

    def hung_up(self, now: float) -> None:
        """Note that the holder has closed the stream, and begin to look for progress."""
        self.gone = self._watch.hung = True
        if self._timer is not None and self._timer.due == math.inf:
            self._timer.start(now + LINGER, now)

    def end_output(self) -> None:
        """Pass an end of file on to the holder."""
        self.socket.shutdown(socket.SHUT_WR)

    def end(self, *, reset: bool) -> None:
        """Close the end after this turn of the loop.

        :param reset: whether the holder sees a reset and not an end of file.
        """
        if self._timer is not None:
            self._timer.stop()
        self._watch.end()
        self._timer = self._moved = self._expired = None  # they refer to the owner
        if reset:
            set_to_reset(self.socket)
        self._loop.discard(self.socket)

    def abandon(self) -> None:
        """In a forked child: only close the descriptors."""
        self.socket.close()
        if self._holder is not None:
            self._holder.close()

    def _look(self, now: float) -> None:
        assert self._moved is not None
        assert self._expired is not None
        assert self._timer is not None
        moved = self._moved()
        if moved == self._mark:
            self._expired(now)
        else:
            self._mark = moved
            self._timer.start(now + LINGER, now)
