"""Accepted streams of a listener, until the caller of ``accept()`` or a tunnel takes them."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .stream import Stream

Peer = TypeVar("Peer")
Taker = Callable[[Stream, Any], object]

MOST = 128  # streams that wait; the listener keeps or refuses further ones


def _nothing() -> None:
    pass


class AcceptQueue(Generic[Peer]):
    """The streams that wait for :meth:`take`, unless they are delivered at once. Safe from any thread.

    :param full: called when the queue has become full.
    :param room: called when a full queue has room again.
    """

    def __init__(self, full: Callable[[], object] = _nothing, room: Callable[[], object] = _nothing) -> None:
        self._full = full
        self._room = room
        self._changed = threading.Condition()  # for all that follows
        self._waiting: deque[tuple[Stream, Peer]] = deque()
        self._taker: Taker | None = None
        self._error: OSError | None = None  # to be raised once
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """If ``True``, no more streams should be put in."""
        return len(self._waiting) >= MOST

    def put(self, stream: Stream, peer: Peer) -> None:
        """Add a stream, or deliver it; it is reset if the queue is closed.

        :param stream: the stream; the queue owns it.
        :param peer: the address that it came from.
        """
        with self._changed:
            # Decided under the lock, called without it: a taker may call this queue, and holds locks of its own.
            taker, closed = self._taker, self._closed
            if taker is None and not closed:
                self._waiting.append((stream, peer))
                self._changed.notify()
        if taker is not None:
            taker(stream, peer)
        elif closed:
            stream.reset()
        elif self.is_full:
            self._full()

    def take(self, timeout: float | None = None) -> tuple[Stream, Peer] | None:
        """Wait for a stream.

        :param timeout: seconds; ``None`` to wait without a limit.
        :returns: the stream and where it came from; ``None`` if none came in time.
        :raises OSError: the error of :meth:`fail`, once; ``EBADF`` once the queue is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._error is not None, timeout)
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            error, self._error = self._error, None
            if error is not None:
                raise error
            if not self._waiting:
                return None
            taken = self._waiting.popleft()
            # At half and not at the first place: a listener that is stopped and started for each stream costs more than
            # it moves.
            room = len(self._waiting) == MOST // 2
        if room:
            self._room()
        return taken

    def deliver(self, taker: Taker | None) -> None:
        """Deliver streams at once, the waiting ones first.

        :param taker: called with each stream and its peer in the thread of :meth:`put`, and must not block; ``None`` to
            keep them for :meth:`take`, which the taker may ask for as well.
        """
        with self._changed:
            self._taker = None if self._closed else taker
        # One at a time: while the lock is free another thread may deliver a newer stream first, but none is lost, also
        # if `deliver(None)` or `close` comes in between.
        while taker is not None:
            with self._changed:
                if self._taker is not taker or not self._waiting:
                    break
                stream, peer = self._waiting.popleft()
            taker(stream, peer)
        self._room()

    def fail(self, error: OSError) -> None:
        """Raise an error in the call of :meth:`take` that waits, or in the next one."""
        with self._changed:
            self._error = error
            self._changed.notify()

    def reset_waiting(self) -> None:
        """Reset the streams that wait."""
        with self._changed:
            waiting = self._empty()
        for stream, _ in waiting:
            stream.reset()

    def close(self) -> None:
        """Wake :meth:`take`, and reset the streams that wait and those that are put in later. Idempotent."""
        with self._changed:
            self._closed = True
            # A taker belongs to a tunnel that may have ended; from now on what comes is reset here.
            self._taker = None
            self._changed.notify_all()
        self.reset_waiting()

    def after_fork(self) -> None:
        """In a forked child: close the sockets; the lock may be held forever."""
        self._changed = threading.Condition()
        self._closed = True
        # Only the copies of the descriptors: a reset would end the connections of the parent.
        for stream, _ in self._empty():
            stream.socket.close()

    def _empty(self) -> list[tuple[Stream, Peer]]:
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting
