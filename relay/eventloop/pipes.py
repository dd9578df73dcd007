"""Kernel pipes for ``splice``: pooled, bounded, and done without where the system says no."""

from __future__ import annotations

import fcntl
import os
import threading
from typing import NamedTuple

SIZE = 1 << 20  # bytes of one pipe: the most that one step of a bulk transfer moves
_BOUND = 32 << 20  # bytes of all pipes of this process; Linux grants a user 64 MiB and then pipes of 8 KiB
_KEPT = 4  # idle pipes that one pool keeps

# F_SETPIPE_SZ is missing from the fcntl module of Python 3.9 and of other systems.
_SET_SIZE = getattr(fcntl, "F_SETPIPE_SZ", None)


class Pipe(NamedTuple):
    """An empty pipe."""

    reader: int
    writer: int
    size: int


class PipePool:
    """The pipes of one relay thread. Belongs to that thread; the bound holds for the process.

    A flow takes a pipe only while it has bytes in it, so that a thousand bulk transfers that are not blocked share the
    last of the idle ones.
    """

    _lock = threading.Lock()
    _total = 0

    def __init__(self) -> None:
        self.idle: list[Pipe] = []
        """The empty pipes. To take one, remove it."""

    def make(self) -> Pipe | None:
        """Make another idle pipe, and return it, or ``None`` if that is not possible: then copy."""
        made = self._make()
        if made is not None:
            self.idle.append(made)
        return made

    def give(self, pipe: Pipe) -> None:
        """Take back a pipe that is empty."""
        if len(self.idle) < _KEPT:
            self.idle.append(pipe)
        else:
            self.destroy(pipe)

    def destroy(self, pipe: Pipe) -> None:
        """Close a pipe that may hold bytes."""
        os.close(pipe.reader)
        os.close(pipe.writer)
        self._account(-pipe.size)

    def close(self) -> None:
        """Close the idle pipes."""
        while self.idle:
            self.destroy(self.idle.pop())

    @classmethod
    def usage(cls) -> tuple[int, int]:
        """Return how many pipes of this process are open, and how many more it may open; from any thread."""
        # Without the lock: one number, read for metrics, which may be of a moment ago.
        total = cls._total
        return total // SIZE, (_BOUND - total) // SIZE

    def _make(self) -> Pipe | None:
        # Accounted for before it is made: two threads that make their last pipe at once must not both find room.
        if _SET_SIZE is None or not self._account(SIZE):
            return None
        try:
            reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # No descriptor is left; copying needs none.
        except OSError:
            self._account(-SIZE)
            return None
        try:
            fcntl.fcntl(writer, _SET_SIZE, SIZE)
        except OSError:
            # The user's quota of pipe memory is used up; a small pipe would be slower than copying.
            os.close(reader)
            os.close(writer)
            self._account(-SIZE)
            return None
        return Pipe(reader, writer, SIZE)

    @classmethod
    def _account(cls, size: int) -> bool:
        # The relay threads of all tunnels share the bound.
        with cls._lock:
            if size > 0 and cls._total + size > _BOUND:
                return False
            cls._total += size
            return True
