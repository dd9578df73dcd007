"""Listeners of ssh on this side, one for each target, and how streams are made at them: by a plain connect."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque

from ....errors import CarrierError, ConnectError
from ....eventloop.sockets import Endpoint, connect_blocking
from ..connection import Address
from .channel_log import shown
from .opening import Opening

__all__ = ["Forward"]

_NONBLOCKING = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)
_PATIENCE = 60.0  # seconds for ssh to make room in a backlog that is full


class Forward:
    """One target, and ssh's listener that leads there.

    Every method but :meth:`connect_blocking` is called with the owner's lock held.

    :param place: the target.
    :param path: of the listener.
    """

    def __init__(self, place: Address, path: str) -> None:
        self.place = place
        self.path = path
        self.name = str(place)
        self.key = shown(place)
        self.is_ready = False
        self.is_catching_up = False  # another thread connects what waits, one after another
        self.waiting: deque[Opening] = deque()
        self.expected: deque[Opening] = deque()  # ssh has not said yet that it accepted them; in the order of connects

    @property
    def is_busy(self) -> bool:
        """Whether something is under way that needs the listener."""
        return not self.is_ready or self.is_catching_up or bool(self.waiting or self.expected)

    @property
    def wants_help(self) -> bool:
        """Whether its backlog is full, and nobody waits for room."""
        return self.is_ready and bool(self.waiting) and not self.is_catching_up

    def connect(self, opening: Opening) -> socket.socket | None:
        """Begin a stream; ``None`` if it has failed, or waits for :meth:`connect_blocking`."""
        if not self.is_ready or self.waiting or self.is_catching_up:
            self.waiting.append(opening)
            return None
        try:
            made = socket.socket(socket.AF_UNIX, _NONBLOCKING)
        except OSError as error:
            self._failed(opening, error)
            return None
        if _NONBLOCKING == socket.SOCK_STREAM:
            made.setblocking(False)
        status = made.connect_ex(self.path)
        if status == 0:
            self.expected.append(opening)
            return made
        made.close()
        if status == errno.EAGAIN:
            self.waiting.append(opening)
        else:
            self._failed(opening, OSError(status, os.strerror(status)))
        return None

    def next_waiting(self) -> Opening | None:
        """The next of those that wait, for the thread that catches up; ``None`` and its work is done."""
        self.is_catching_up = bool(self.waiting)
        if not self.waiting:
            return None
        opening = self.waiting.popleft()
        self.expected.append(opening)  # before its connect, for ssh may be quicker than we
        return opening

    def connect_blocking(self) -> socket.socket | OSError:
        """Connect as soon as the backlog has room; without the lock, in the thread that catches up."""
        try:
            made = socket.socket(socket.AF_UNIX)
        except OSError as error:
            return error
        status = connect_blocking(made, Endpoint(socket.AF_UNIX, self.path), time.monotonic() + _PATIENCE)
        if status == 0:
            return made
        made.close()
        return OSError(status, os.strerror(status))

    def not_connected(self, opening: Opening, error: OSError) -> None:
        """The connect of one that waited has failed."""
        self.expected.remove(opening)
        self._failed(opening, error)

    def _failed(self, opening: Opening, error: OSError) -> None:
        gone = error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET)
        text = f"{self.name}: ssh takes no stream: {error.strerror}"
        opening.fail(CarrierError(text) if gone else ConnectError(text))
        opening.owner.over(opening)
