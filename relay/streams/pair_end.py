"""relay's end of a socketpair whose other end is the socket of a stream: waiting, hang-up, and what ends it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from ..eventloop.background import Watch
from ..eventloop.loop import Handler, Loop, Timer
from ..eventloop.sockets import set_to_reset, unread
from ..eventloop.unix_reset import socketpair

BETWEEN = 256 << 10  # bytes on their way to a holder who does not read; Linux doubles it
LINGER = 60.0  # seconds without progress until a stream that its holder has closed is given up


def release_after(over: threading.Event, release: Callable[[], object]) -> Callable[[], object]:
    """Return a call of ``release`` that waits until a session is over: the carrier under it must stay until then.

    :param over: set once the session is over. :data:`LINGER` bounds its end, twice in the worst case, and so the wait.
    :param release: releases what is under the session.
    """

    def wait() -> None:
        over.wait(2 * LINGER)
        release()

    return wait


class PairEnd:
    """One end of a socketpair; the holder of a stream has the other one. Belongs to the thread of its loop.

    :param loop: watches the socket.
    :param on_event: called with the events of the socket and the time, as any handler of a loop.
    :param moved: returns a number that changes while bytes leave.
    :param expired: called with the time when the holder has closed the stream and nothing has moved for
        :data:`LINGER` seconds.
    :raises OSError: if there are no descriptors left.
    """

    __slots__ = ("socket", "gone", "watch", "_expired", "_holder", "_loop", "_mark", "_moved", "_timer")

    def __init__(
        self, loop: Loop, on_event: Handler, moved: Callable[[], int], expired: Callable[[float], object]
    ) -> None:
        self.socket, holder = socketpair()
        self._holder: socket.socket | None = holder
        # On relay's end: in a Unix pair the sender's buffer is the bound of what waits for the other end.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BETWEEN)
        self.gone = False
        """Whether the holder has closed the stream."""
        self._loop = loop
        self._moved: Callable[[], int] | None = moved
        self._expired: Callable[[float], object] | None = expired
        self._mark = -1  # what had moved at the last look
        self._timer: Timer | None = None
        self.watch = Watch(self.socket, loop, on_event)
        """The events that are waited for; after the first ones also errors and hang-ups."""

    def hand_over(self) -> socket.socket:
        """Return the holder's end; once."""
        holder, self._holder = self._holder, None
        assert holder is not None
        return holder

    def expect_progress(self, now: float) -> None:
        """Begin to look whether bytes leave, because the holder has closed the stream. Idempotent."""
        # Only after the close: a holder that is alive and does not read may take as long as it likes.
        if self._timer is None:
            self._timer = Timer(self._loop.timers, self._look)
            self._timer.start(now + LINGER, now)

    def move(self, loop: Loop, on_event: Handler, now: float) -> None:
        """Go on in the thread of another loop, after an end of :attr:`watch`.

        :param loop: that of the current thread.
        :param on_event: as before.
        :param now: monotonic seconds.
        """
        self._loop = loop
        self.watch = Watch(self.socket, loop, on_event)
        self.watch.hung = self.gone
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            self.expect_progress(now)

    def end(self, *, reset: bool) -> None:
        """Close the end after this turn of the loop.

        :param reset: whether the holder sees a reset and not an end of file.
        """
        if self._timer is not None:
            self._timer.stop()
        self.watch.end()
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
        # A look each LINGER seconds and no clock at each byte: a stream that makes progress costs one comparison a
        # minute.
        if moved == self._mark:
            self._expired(now)
        else:
            self._mark = moved
            self._timer.start(now + LINGER, now)


class Reading:
    """The reading of what a stream was sent before its close, by the program at its end.

    :param end: a copy of the program's end of the socketpair.
    """

    __slots__ = ("left", "_end", "_until")

    def __init__(self, end: socket.socket) -> None:
        self.left = 0
        """Bytes that the program had not read at the last look."""
        self._end = end
        self._until = 0.0

    def goes_on(self, now: float, rest: float) -> bool:
        """Return whether to wait longer: it has bytes to read, and has read some in the last :data:`LINGER` seconds.

        :param now: monotonic seconds.
        :param rest: seconds to wait after it has read everything.
        """
        left = unread(self._end)
        if left != self.left:
            self.left, self._until = left, now + (LINGER if left else rest)
        return now < self._until
