"""Loads whose events come one at a time, so that a relay does the same for each of them.

Client and target are one thread. After each step the relay and all it works with fall asleep before the next one, so
that no two events come in one turn of its loop, however busy the machine is.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

from ..counted import started, wait_until_asleep
from ..machine import LOOPBACK, MeasurementError

MIB = 2**20
ANSWERS = 60.0  # seconds for one answer
REQUEST, ANSWER = b"?" * 64, b"!" * 64


class Lockstep:
    """One client after another of a relay, and its target.

    :param tls: what the target speaks TLS with, if it does.
    :param half_close: whether the client's EOF reaches the target while the other direction goes on.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, *, half_close: bool = True) -> None:
        self.listener = socket.create_server((LOOPBACK, 0), backlog=16)
        self.listener.settimeout(ANSWERS)
        self.target: int = self.listener.getsockname()[1]
        self.resumed = 0  # sessions of TLS
        self.port = 0  # of the relay, to be set
        self.greet: Callable[[socket.socket], None] = lambda _client: None  # what a client does first
        self._tls = tls
        self._half_close = half_close
        self._pids = started()

    def close(self) -> None:
        """End it."""
        self.listener.close()

    def settle(self) -> None:
        """Wait until all programs that this one has started are asleep."""
        wait_until_asleep(self._pids)

    def accept(self) -> socket.socket:
        """The next stream of the relay."""
        stream = self.listener.accept()[0]
        stream.settimeout(ANSWERS)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            wrapped = self._tls.wrap_socket(stream, server_side=True)
            self.resumed += bool(wrapped.session_reused)
            stream = wrapped
        self.settle()
        return stream

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A client, and the target's end of its connection."""
        self._pids = started()
        client = socket.create_connection((LOOPBACK, self.port), ANSWERS)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.settle()
        self.greet(client)
        return client, self.accept()

    def connection(self) -> None:
        """A connection: 64 bytes each way, EOF of the client if that is possible, EOF of the target."""
        client, target = self.pair()
        with client:
            with target:
                self.exchange(client, target)
                if self._half_close:
                    client.shutdown(socket.SHUT_WR)
                    _end(target)
                    self.settle()
                if isinstance(target, ssl.SSLSocket):
                    target.unwrap()
            _end(client)
            self.settle()

    def exchange(self, client: socket.socket, target: socket.socket) -> None:
        """A request and its answer."""
        client.sendall(REQUEST)
        _until(target, REQUEST)
        self.settle()
        target.sendall(ANSWER)
        _until(client, ANSWER)
        self.settle()

    def pour(self, client: socket.socket, target: socket.socket, piece: int) -> None:
        """A MiB of the target, in pieces."""
        data = bytes(piece)
        for _ in range(0, MIB, piece):
            target.sendall(data)
            left = piece
            while left:
                left -= len(_some(client, left))
            self.settle()


def _some(end: socket.socket, size: int) -> bytes:
    data = end.recv(size)
    if not data:
        raise MeasurementError("the connection has ended")
    return data


def _until(end: socket.socket, last: bytes) -> None:
    """Read up to the bytes that come last."""
    data = b""
    while not data.endswith(last):
        data += _some(end, 4096)


def _end(stream: socket.socket) -> None:
    if stream.recv(1):
        raise MeasurementError("bytes that were not sent")
