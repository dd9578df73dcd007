"""The end of a stream's output, until the router has read all of it.

A router drops what it has not sent when the session of the stream is closed, and a process that exits closes it. SAM
has no message that tells what was sent. But i2pd reads a stream only as fast as it sends, and answers EOF by closing
the socket: then all is sent, except for the last window of packets. Keeping the session 1 s longer did not help
(measured).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from ...eventloop.background import IOThread, Watch
from ...eventloop.loop import Timer
from ...eventloop.poller import IN

__all__ = ["end_output"]

_TIMEOUT = 60.0  # seconds for the router to read what the kernel holds
_PIECE = 65536  # bytes that are read at once and dropped


def end_output(sock: socket.socket, done: Callable[[], object]) -> None:
    """Send EOF to the router, and read and drop what still comes, until the router ends its direction too.

    :param sock: a stream's non-blocking socket; its owner closes it once ``done`` was called.
    :param done: called once: the router has read everything, the socket has failed, or :data:`_TIMEOUT` seconds have
        passed. On the I/O thread; must not block.
    :raises OSError: if no thread or descriptor is available.
    """
    _LastBytes(sock, done)


class _LastBytes:
    """One wait; belongs to the I/O thread."""

    def __init__(self, sock: socket.socket, done: Callable[[], object]) -> None:
        self._socket = sock
        self._done: Callable[[], object] | None = done
        self._io_thread = IOThread.acquire(self)
        self._watch = Watch(sock, self._io_thread.loop, self._on_event)
        self._timer = Timer(self._io_thread.loop.timers, lambda now: self._finish())
        self._io_thread.loop.call(self._begin)

    def abandon(self) -> None:
        """Do nothing: in a forked child the owner closes the descriptor."""

    def crashed(self, now: float) -> None:
        """End the wait after a bug in a handler."""
        self._finish()

    def _begin(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return self._finish()  # it has failed
        self._watch.set_interest(IN)
        now = time.monotonic()
        return self._timer.start(now + _TIMEOUT, now)

    def _on_event(self, event: int, now: float) -> None:
        try:
            if self._socket.recv(_PIECE):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # a reset ends it, too
        self._finish()

    def _finish(self) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        self._watch.end()
        self._timer.stop()
        self._io_thread.release(self)
        done()
