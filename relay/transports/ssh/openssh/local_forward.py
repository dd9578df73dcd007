"""Local forwards: ssh listens at a Unix socket for each target; a connect to that socket opens a stream."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Container

from ....errors import CarrierError, ConnectError
from ....eventloop.sockets import Endpoint, connect_blocking
from ..connection import Address
from .channel_log import Key, is_plain, shown
from .opening import Opening

_NONBLOCKING = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)
_BACKLOG_TIMEOUT = 60.0  # seconds for ssh to make room in a full backlog


def objection(place: Address, known: Container[Address], expected: Container[Key]) -> ConnectError | None:
    """Return why a target is unsupported.

    :param place: the target.
    :param known: the targets in use.
    :param expected: the targets in use, as ssh logs them.
    """
    if place in known:
        return None
    if not is_plain(place):
        return ConnectError(f"{str(place)!a}: control characters in an address are not supported", reason="denied")
    if shown(place) in expected:
        text = "another target in use begins with the same 100 characters"
        return ConnectError(f"{place}: {text}; use the backend paramiko")
    return None


class LocalForward:
    """One target, and ssh's listener for it.

    Every method but :meth:`connect_blocking` is called with the owner's lock held.

    :param place: the target.
    :param path: the path of the listener.
    """

    def __init__(self, place: Address, path: str) -> None:
        self.place = place
        self.path = path
        self.name = str(place)
        self.key = shown(place)
        self.is_ready = False
        self.is_connecting = False  # a thread connects the waiting streams, one after another
        self.waiting: deque[Opening] = deque()
        self.expected: deque[Opening] = deque()  # not yet in ssh's log; in the order of their connects

    @property
    def is_busy(self) -> bool:
        """True while a stream is being opened by the listener."""
        return not self.is_ready or self.is_connecting or bool(self.waiting or self.expected)

    @property
    def wants_help(self) -> bool:
        """True if its backlog is full, and no thread waits for room yet."""
        return self.is_ready and bool(self.waiting) and not self.is_connecting

    def connect(self, opening: Opening) -> socket.socket | None:
        """Connect a stream; ``None`` if that has failed, or if it waits for :meth:`connect_blocking`."""
        # Behind those that wait: ssh's log names streams by the order of their connects only.
        if not self.is_ready or self.waiting or self.is_connecting:
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
            # With the lock held since before the connect, so that no line about it can have been read yet.
            self.expected.append(opening)
            return made
        made.close()
        if status == errno.EAGAIN:
            self.waiting.append(opening)
        else:
            self._failed(opening, OSError(status, os.strerror(status)))
        return None

    def next_waiting(self) -> Opening | None:
        """Return the next waiting stream, for the thread that connects them; ``None`` if there is none."""
        self.is_connecting = bool(self.waiting)
        if not self.waiting:
            return None
        opening = self.waiting.popleft()
        self.expected.append(opening)  # before its connect, because ssh may be faster
        return opening

    def connect_blocking(self) -> socket.socket | OSError:
        """Connect as soon as the backlog has room; without the lock, on the thread for waiting streams."""
        try:
            made = socket.socket(socket.AF_UNIX)
        except OSError as error:
            return error
        status = connect_blocking(made, Endpoint(socket.AF_UNIX, self.path), time.monotonic() + _BACKLOG_TIMEOUT)
        if status == 0:
            return made
        made.close()
        return OSError(status, os.strerror(status))

    def not_connected(self, opening: Opening, error: OSError) -> None:
        """Report that the connect of a waiting stream has failed."""
        # It never connected: the next line of the log is about the one behind it.
        self.expected.remove(opening)
        self._failed(opening, error)

    def _failed(self, opening: Opening, error: OSError) -> None:
        gone = error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET)
        text = f"{self.name}: ssh accepts no stream: {error.strerror}"
        opening.fail(CarrierError(text) if gone else ConnectError(text))
        opening.owner.over(opening)
