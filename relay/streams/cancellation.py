"""Tells whoever makes a stream that nobody waits for it any more."""

from __future__ import annotations

import os
import threading
from typing import Protocol

__all__ = ["Cancel", "Cancellation"]


class Cancel(Protocol):
    """What tells a factory that nobody waits for its stream any more."""

    def is_set(self) -> bool:
        """Whether the attempt was given up."""

    def fileno(self) -> int:
        """A descriptor that becomes readable when the attempt is given up."""


class Cancellation:
    """Tells a factory that nobody waits for its stream any more; its descriptor is made when it is asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._pipe: tuple[int, int] | None = None

    def is_set(self) -> bool:
        """Whether the attempt was given up."""
        return self._set

    def fileno(self) -> int:
        """A descriptor that becomes readable when the attempt is given up; valid until the factory returns."""
        with self._lock:
            if self._pipe is None:
                self._pipe = os.pipe()
                if self._set:
                    os.write(self._pipe[1], b"\0")
            return self._pipe[0]

    def set(self) -> None:
        """Give the attempt up."""
        with self._lock:
            was_set, self._set = self._set, True  # first, for whoever is woken looks at it
            if not was_set and self._pipe is not None:
                os.write(self._pipe[1], b"\0")

    def close(self) -> None:
        """The factory has returned."""
        with self._lock:
            self._set = True
            self.abandon()

    def abandon(self) -> None:
        """In a forked child: close the descriptors; the lock may be held for ever."""
        pipe, self._pipe = self._pipe, None
        for descriptor in pipe or ():
            os.close(descriptor)
