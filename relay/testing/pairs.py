"""Connected sockets without a server, and a listener without a network."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections import deque
from types import TracebackType
from typing import Any

__all__ = ["FakeListener", "clogged_pair", "pair"]

_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def pair(family: int = socket.AF_UNIX) -> tuple[socket.socket, socket.socket]:
    """Return two blocking stream sockets that are connected to each other.

    :param family: ``AF_UNIX`` for a :func:`socket.socketpair`; ``AF_INET`` or ``AF_INET6`` for TCP over loopback, whose
        ends can be reset.
    :returns: both ends; the caller closes them.
    :raises OSError: if no descriptors are left, or the machine does not support the family.
    """
    if family == socket.AF_UNIX:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket.create_server((_LOOPBACK[socket.AddressFamily(family)], 0), family=family) as listener:
        near = socket.create_connection(listener.getsockname()[:2])
        try:
            while True:
                far, peer = listener.accept()
                # Any program of the machine can connect to the port between its listen and the accept.
                if peer == near.getsockname():
                    return near, far
                far.close()  # another client found the port first
        except BaseException:
            near.close()
            raise


def clogged_pair(family: int = socket.AF_UNIX) -> tuple[socket.socket, socket.socket]:
    """Return a pair whose first end cannot send: the buffers are small and full of zero bytes.

    :param family: as for :func:`pair`.
    :returns: the clogged end, blocking, and the other end. Reading from the other end unclogs the first.
    :raises OSError: as for :func:`pair`.
    """
    clogged, reader = pair(family)
    # The kernel rounds both up to its own least; what counts is that the pair fills with little and drains with little.
    clogged.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    poller = select.poll()
    poller.register(clogged, select.POLLOUT)
    clogged.setblocking(False)
    _fill(clogged)
    while poller.poll(20):  # TCP moves bytes from one buffer to the other for a moment yet
        _fill(clogged)
    clogged.setblocking(True)
    return clogged, reader


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a bound TCP socket that does not listen: it reserves the port for another socket of this process.

    :param host: IP address.
    :param port: port; 0 for any free one.
    :raises OSError: if the address cannot be bound.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # Both sockets of one port need it: this one that reserves, and the later one that listens. It also passes over
        # connections in TIME_WAIT, which a server leaves behind that is stopped and started again.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


def _fill(clogged: socket.socket) -> None:
    # Large steps first; single bytes then fill the room that is too small for a large one.
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                clogged.send(bytes(size))


class FakeListener:
    """A listener without a network: the test provides the clients.

    It meets the contract of a tunnel's ``receive``: :meth:`accept` blocks, and :meth:`close` wakes it.
    """

    address = "fake"

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: deque[tuple[Any, Any] | BaseException] = deque()
        self._closed = False

    def connect(self, family: int = socket.AF_UNIX, peer: Any = "fake client") -> socket.socket:
        """Connect a client.

        :param family: as for :func:`pair`.
        :param peer: address of the client, for the records.
        :returns: the client's end, blocking; :meth:`accept` returns the other one.
        """
        client, accepted = pair(family)
        self.put(accepted, peer)
        return client

    def put(self, stream: Any, peer: Any = "fake client") -> None:
        """Make the next :meth:`accept` return ``(stream, peer)``.

        :param stream: a socket, a :class:`relay.Stream`, or any object with the Python socket interface.
        :param peer: address of the client, for the records.
        """
        self._add((stream, peer))

    def fail(self, error: BaseException) -> None:
        """Make the next :meth:`accept` raise ``error``."""
        self._add(error)

    def _add(self, item: tuple[Any, Any] | BaseException) -> None:
        with self._condition:
            self._waiting.append(item)
            self._condition.notify()

    def accept(self) -> tuple[Any, Any]:
        """Wait for the next client.

        :returns: the stream and its peer.
        :raises OSError: ``EBADF`` after :meth:`close`, like a closed socket; also any error given to :meth:`fail`.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            item = self._waiting.popleft()
        if isinstance(item, BaseException):
            raise item
        return item

    @property
    def closed(self) -> bool:
        """``True`` once :meth:`close` was called."""
        return self._closed

    def close(self) -> None:
        """Wake :meth:`accept`, and close the streams that it has not returned. Idempotent, from any thread."""
        with self._condition:
            self._closed = True
            # Taken out under the lock and closed outside it: closing a stream may call back into the code under test.
            left = [item for item in self._waiting if isinstance(item, tuple)]
            self._waiting.clear()
            self._condition.notify_all()
        for stream, _ in left:
            stream.close()

    def __enter__(self) -> FakeListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
