"""Listeners of ssh on this side, one for each target, and how streams are made at them: by a plain connect."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque

from ...errors import CarrierError, ConnectError
from ...race import Endpoint, connect_patiently
from ..connection import Place
from .channels import shown
from .opening import Opening

__all__ = ["Forward"]

_NONBLOCKING = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
_PATIENCE = 60.0  # seconds for ssh to accept one of a backlog that is full


class Forward:
    """One target, and ssh's listener that leads there. Every method but :meth:`catch_up` wants the owner's lock held.

    :param place: the target.
    :param path: of the listener.
    """

    def __init__(self, place: Place, path: str) -> None:
        self.place = place
        self.path = path
        self.name = str(place)
        self.key = shown(place)
        self.is_ready = False
        self.is_catching_up = False  # another thread connects what waits, one after another
        self.waiting: deque[Opening] = deque()
        self.expected: deque[Opening] = deque()  # connected, and ssh has not said yet that it accepted them

    @property
    def is_busy(self) -> bool:
        """Whether something is under way that needs the listener."""
        return not self.is_ready or self.is_catching_up or bool(self.waiting or self.expected)

    def connect(self, opening: Opening) -> bool:
        """Begin a stream.

        :returns: whether its socket is there; ``False`` if it has failed, or waits for :meth:`catch_up`.
        """
        if not self.is_ready or self.is_catching_up:
            self.waiting.append(opening)
            return False
        try:
            made = socket.socket(socket.AF_UNIX, _NONBLOCKING)
        except OSError as error:
            return self._failed(opening, error)
        status = made.connect_ex(self.path)
        if status == 0:
            opening.socket = made
            self.expected.append(opening)
            return True
        made.close()
        if status != errno.EAGAIN:
            return self._failed(opening, OSError(status, os.strerror(status)))
        self.waiting.append(opening)
        return False

    def begin_waiting(self) -> Opening | None:
        """Take the next of those that wait, to be connected by the thread that asks."""
        self.is_catching_up = bool(self.waiting)
        if not self.waiting:
            return None
        opening = self.waiting.popleft()
        self.expected.append(opening)  # before its connect, for ssh may be quicker than we
        return opening

    def connect_waiting(self) -> socket.socket | OSError:
        """Connect as soon as the backlog has room; without the lock, in the thread that catches up."""
        made = socket.socket(socket.AF_UNIX)
        status = connect_patiently(made, Endpoint(socket.AF_UNIX, self.path), time.monotonic() + _PATIENCE)
        if status == 0:
            return made
        made.close()
        return OSError(status, os.strerror(status))

    def end_waiting(self, opening: Opening, outcome: socket.socket | OSError) -> bool:
        """What became of it; returns whether its socket is there."""
        if isinstance(outcome, OSError):
            self.expected.remove(opening)
            return self._failed(opening, outcome)
        opening.socket = outcome
        return True

    def _failed(self, opening: Opening, error: OSError) -> bool:
        gone = error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET)
        text = f"{self.name}: ssh takes no stream: {error.strerror}"
        opening.fail(CarrierError(text) if gone else ConnectError(text))
        opening.owner.over(opening)
        return False
