"""Prompt acknowledgements on ssh's own connection.

A server of OpenSSH sends the small messages of a forward with Nagle's algorithm: the second one waits until the first
is acknowledged, and an acknowledgement is delayed for 40 ms where there is nothing to send. So a server that speaks
first, or the end of a stream, is 40 ms late. Linux acknowledges at once when it is asked to (TCP_QUICKACK), and ssh
itself, as a master, does not even turn its own Nagle off.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket

__all__ = ["Promptness"]

_SOON, _LATE = 0.002, 0.02  # seconds between two looks where something is to be gained, and elsewhere
_PIDFD_GETFD = 438  # the same on every architecture that this package runs on
_FIRST, _LAST = 3, 9  # the descriptors among which ssh has its connection


class Promptness:
    """Asks for acknowledgements on a connection that another process uses; does nothing where that cannot be had."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self.interval = _LATE  # seconds after which to ask again, while something happens

    def begin(self, connection: socket.socket | None, process: int) -> None:
        """Find the connection.

        :param connection: the connection, if it is ours; it stays its owner's.
        :param process: a descriptor of the process that has made one, else.
        """
        self._socket = _copy(connection) if connection is not None else _find(process)
        if self._socket is not None and hasattr(socket, "TCP_QUICKACK"):
            self._set(socket.TCP_NODELAY)
            self.interval = _SOON

    def acknowledge(self) -> None:
        """Have what has come acknowledged now."""
        if self._socket is not None:
            self._set(socket.TCP_QUICKACK)

    def close(self) -> None:
        """Let the connection go; idempotent."""
        made, self._socket = self._socket, None
        if made is not None:
            made.close()

    def _set(self, option: int) -> None:
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.setsockopt(socket.IPPROTO_TCP, option, 1)


def _copy(connection: socket.socket) -> socket.socket | None:
    return connection.dup() if connection.family in (socket.AF_INET, socket.AF_INET6) else None


def _find(process: int) -> socket.socket | None:
    """A copy of the connection that the process has: it is our child, so Linux lets us have one."""
    library = ctypes.CDLL(None)
    for number in range(_FIRST, _LAST + 1):
        descriptor = library.syscall(_PIDFD_GETFD, process, number, 0)
        if descriptor < 0:
            continue
        try:
            made = socket.socket(fileno=descriptor)
        except OSError:  # something else
            os.close(descriptor)
            continue
        if made.family in (socket.AF_INET, socket.AF_INET6) and made.type == socket.SOCK_STREAM:
            return made
        made.close()
    return None
