"""Prompt acknowledgements on the TCP connection of ssh.

A server of OpenSSH sends the small messages of a forward with Nagle's algorithm: the second one waits until the first
is acknowledged, and Linux delays an acknowledgement by 40 ms while there is nothing to send. A target that speaks
first, an answer in two writes and an EOF after an answer would each come 40 ms late. Measured with sshd 9.2 on the
loopback, median of 120 streams: 44 ms until the first bytes and until the EOF, 3 ms with this module; keep-alive
round trips and bulk transfers are the same with and without it.

ssh has no option for it, so relay holds a copy of the connection's descriptor and sets TCP_QUICKACK (tcp(7)) when data
arrive: the option acknowledges what has arrived, and does not stay set. Nothing polls: an edge-triggered event reports
new data once. After an event the descriptor rests for 2 ms, so that a bulk transfer causes at most 500 of them per
second.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket

from ....eventloop.loop import Loop, Timer
from ....eventloop.poller import ERR, HUP, IN, OUT

_REST = 0.002  # seconds after an event until the next one
_EDGE = getattr(select, "EPOLLET", 0)  # 0 where there is no epoll, which reports edges
# With OUT, because epoll drops the event of data that ssh has read already; a connection can nearly always be written.
_ARMED = IN | OUT | _EDGE
_PIDFD_GETFD = 438  # the number of the system call, the same on every architecture
_FIRST, _LAST = 3, 9  # the descriptors among which ssh has its connection


class QuickAck:
    """Acknowledges at once what arrives on a connection that another process reads.

    It does nothing where the system lacks what it needs (epoll, TCP_QUICKACK, pidfd_getfd(2)) and for a connection
    that is not TCP. Every method is for the loop's thread.

    :param loop: watches the connection.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._rest = Timer(loop.timers, self._watch_again)
        self._socket: socket.socket | None = None
        self._is_arming = False  # the next event reports that the connection can be written, and no new data

    def begin(self, connection: socket.socket | None, process: int) -> None:
        """Find the connection and watch it.

        :param connection: the connection, if relay has made it; it remains its owner's.
        :param process: otherwise, a pidfd of the process that has made it.
        """
        if not _EDGE or not hasattr(socket, "TCP_QUICKACK"):
            return
        self._socket = _copy(connection) if connection is not None else _find(process)
        if self._socket is not None:
            self._is_arming = True
            self._loop.watch(self._socket.fileno(), _ARMED, self._on_data)

    @property
    def connection(self) -> socket.socket | None:
        """The copy, while there is one."""
        return self._socket

    def close(self) -> None:
        """Close the copy. Idempotent."""
        copy, self._socket = self._socket, None
        if copy is not None:
            self._rest.stop()
            self._loop.forget(copy.fileno())  # a close alone does not end the watch: ssh has the same open file
            self._loop.discard(copy)

    def abandon(self) -> None:
        """In a forked child: close only the descriptor."""
        if self._socket is not None:
            self._socket.close()

    def _on_data(self, event: int, now: float) -> None:
        if event & (HUP | ERR):
            self.close()
        elif self._socket is not None:
            self._acknowledge(self._socket)
            # Arming reports at once that the connection can be written; that is no news of data, and needs no rest.
            if not self._is_arming:
                # No interest for now, but not unregistered: errors and hang-ups still come.
                self._loop.poller.modify(self._socket.fileno(), _EDGE)
                self._rest.start(now + _REST, now)
            self._is_arming = False

    def _watch_again(self, now: float) -> None:
        if self._socket is not None:
            self._is_arming = True
            self._loop.poller.modify(self._socket.fileno(), _ARMED)

    def _acknowledge(self, connection: socket.socket) -> None:
        try:  # no context manager: six times for each stream
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except OSError:
            pass  # the connection has just ended


def _copy(connection: socket.socket) -> socket.socket | None:
    return connection.dup() if connection.family in (socket.AF_INET, socket.AF_INET6) else None


def _find(process: int) -> socket.socket | None:
    """A copy of the connection that the process has made; Linux allows it because the process is a child of this one.

    Source: pidfd_getfd(2), of Linux 5.6 or later.
    """
    library = ctypes.CDLL(None)
    # ssh does not say which of its descriptors the connection is; it opens it among its first ones.
    for number in range(_FIRST, _LAST + 1):
        descriptor = library.syscall(_PIDFD_GETFD, process, number, 0)
        if descriptor < 0:
            continue
        try:
            copy = socket.socket(fileno=descriptor)
        except OSError:  # it is no socket
            os.close(descriptor)
            continue
        if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
            return copy
        copy.close()
    return None
