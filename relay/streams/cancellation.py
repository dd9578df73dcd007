"""Cancellation of an attempt to make a stream."""

from __future__ import annotations

import os
import threading
from typing import Protocol


class Cancel(Protocol):
    """A request to give an attempt up, as a factory sees it."""

    def is_set(self) -> bool:
        """Return whether the attempt was given up."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the attempt is given up."""


class Cancellation:
    """A :class:`Cancel` that a tunnel sets; its descriptor is made by the first call of :meth:`fileno`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._pipe: tuple[int, int] | None = None

    def is_set(self) -> bool:
        """Return whether the attempt was given up."""
        return self._set

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the attempt is given up; valid until the factory returns."""
        with self._lock:
            # Most attempts never ask for it, and a pipe costs two descriptors of each client.
            if self._pipe is None:
                self._pipe = os.pipe()
                # It was set before there was a pipe: the waiter must see it all the same.
                if self._set:
                    os.write(self._pipe[1], b"\0")
            return self._pipe[0]

    def set(self) -> None:
        """Give the attempt up."""
        with self._lock:
            was_set, self._set = self._set, True  # first: the thread that is woken looks at it
            if not was_set and self._pipe is not None:
                os.write(self._pipe[1], b"\0")

    def close(self) -> None:
        """Close the descriptor; the factory has returned."""
        with self._lock:
            self._set = True
            # Under the lock, so that `set` writes to no number that is another file's by then.
            self.abandon()

    def abandon(self) -> None:
        """In a forked child: close the descriptors; the lock may be held forever."""
        pipe, self._pipe = self._pipe, None
        for descriptor in pipe or ():
            os.close(descriptor)
