"""Streams that have come in, until somebody takes them."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable

from ...addresses.destinations import Peer
from ...streams.stream import Stream

__all__ = ["AcceptQueue", "Taker"]

Taker = Callable[[Stream, Peer], object]

MOST = 128  # streams that wait; beyond that the router keeps them


class AcceptQueue:
    """Where streams wait for :meth:`take`, or are handed on at once. Every method may be called from any thread.

    :param full: called when so many wait that no more are to come.
    :param room: called when there is room again.
    """

    def __init__(self, full: Callable[[], object], room: Callable[[], object]) -> None:
        self._full = full
        self._room = room
        self._changed = threading.Condition()  # for what follows
        self._waiting: deque[tuple[Stream, Peer]] = deque()
        self._taker: Taker | None = None
        self._error: OSError | None = None  # to be raised once
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether so many wait that no more are to come."""
        return len(self._waiting) >= MOST

    def put(self, stream: Stream, peer: Peer) -> None:
        """A stream has come."""
        with self._changed:
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

    def take(self) -> tuple[Stream, Peer]:
        """Wait for a stream.

        :raises OSError: what :meth:`fail` was told, once; ``EBADF`` once it is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._error is not None)
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            error, self._error = self._error, None
            if error is not None:
                raise error
            taken = self._waiting.popleft()
            room = len(self._waiting) == MOST // 2
        if room:
            self._room()
        return taken

    def deliver(self, taker: Taker | None) -> None:
        """Hand streams on at once, those that wait first; they wait for :meth:`take` if ``taker`` is ``None``."""
        with self._changed:
            self._taker = None if self._closed else taker
            waiting = [] if self._taker is None else self._empty()
        for stream, peer in waiting:
            assert taker is not None
            taker(stream, peer)
        self._room()

    def fail(self, error: OSError) -> None:
        """Have whoever waits, or is the next to do so, told of an error."""
        with self._changed:
            self._error = error
            self._changed.notify()

    def close(self) -> None:
        """Reset what waits, and whatever still comes."""
        with self._changed:
            self._closed = True
            self._taker = None
            waiting = self._empty()
            self._changed.notify_all()
        for stream, _ in waiting:
            stream.reset()

    def _empty(self) -> list[tuple[Stream, Peer]]:
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting
