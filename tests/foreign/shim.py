"""Sends each connect of this process to the loopback through a SOCKS proxy.

It is for the tests of other programs, which know of no proxy. Where a socket does not block, the handshake waits all
the same, and the connect says EINPROGRESS then, as without a proxy: the socket is writable, and has no error.
"""

from __future__ import annotations

import _socket
import errno
import ipaddress
import os
import socket
from typing import Any

_LONGEST = 30.0  # seconds for the answer of the proxy, where the socket has no limit of its own
_ERRORS = {3: errno.ENETUNREACH, 4: errno.EHOSTUNREACH, 5: errno.ECONNREFUSED, 6: errno.ETIMEDOUT}
_PORT = 2  # bytes

# Those of the class in C, as ssl.SSLSocket has others.
_connect, _receive, _send, _settimeout = (
    _socket.socket.connect,
    _socket.socket.recv,
    _socket.socket.send,
    _socket.socket.settimeout,
)


reached: list[bytes] = []
"""The requests that the proxies have fulfilled."""


def install(proxies: dict[int, tuple[str, int]]) -> None:
    """Send connects through a proxy from now on.

    :param proxies: its address for each family.
    """

    def connect(self: socket.socket, address: Any) -> None:
        request = _request_of(self, address)
        if request is None or self.family not in proxies:
            return _connect(self, address)
        limit = self.gettimeout()
        _settimeout(self, limit or _LONGEST)
        try:
            _connect(self, proxies[self.family])
            _shake_hands(self, request)
        finally:
            _settimeout(self, limit)
        if limit == 0:
            raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
        return None

    def connect_ex(self: socket.socket, address: Any) -> int:
        try:
            connect(self, address)
        except TimeoutError as error:
            return error.errno or errno.EAGAIN
        except OSError as error:
            if error.errno is None or isinstance(error, socket.gaierror):
                raise
            return error.errno
        return 0

    socket.socket.connect = connect  # type: ignore[method-assign]
    socket.socket.connect_ex = connect_ex  # type: ignore[method-assign]


def _request_of(sock: socket.socket, address: Any) -> bytes | None:
    """Return the request for an address; ``None`` if that is not one of TCP on the loopback."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return None
    if not isinstance(address, tuple) or len(address) < 2 or not isinstance(address[0], str):
        return None
    host, port = address[:2]
    if host == "localhost":
        host = "::1" if sock.family == socket.AF_INET6 else "127.0.0.1"
    try:
        place = ipaddress.ip_address(host)
        return b"\5\1\0" + (b"\4" if place.version == 6 else b"\1") + place.packed + port.to_bytes(_PORT, "big")
    except (ValueError, OverflowError, AttributeError):  # left to the system, which says what is wrong with it
        return None


def _shake_hands(sock: socket.socket, request: bytes) -> None:
    _send(sock, b"\5\1\0" + request)
    _exactly(sock, 2)
    _, reply, _, kind = _exactly(sock, 4)
    _exactly(sock, (16 if kind == 4 else 4) + _PORT)
    if reply:
        number = _ERRORS.get(reply, errno.ENETUNREACH)
        raise OSError(number, os.strerror(number))
    reached.append(request)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = _receive(sock, size - len(data))
        if not piece:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        data += piece
    return data
