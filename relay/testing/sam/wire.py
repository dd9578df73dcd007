"""The thread of the embedded SAM bridge, and its sockets."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from ...eventloop.background import Watch
from ...eventloop.loop import Loop
from ...eventloop.poller import IN, OUT

__all__ = ["CHUNK", "Hub", "User", "Wire"]

CHUNK = 256 << 10  # bytes read or written at once

Result = TypeVar("Result")


class Hub:
    """The thread of one network of bridges. Everything in it happens there; :meth:`ask` is for the other threads.

    :raises OSError: if the system has no thread or descriptor left.
    """

    def __init__(self) -> None:
        self.loop = Loop()
        self.held = 0  # bytes that wait for programs that do not read
        self._thread = threading.Thread(target=self._run, name="sam bridge", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self.loop.close()
            raise OSError(errno.EAGAIN, str(error)) from error

    def _run(self) -> None:
        self.loop.run()
        self.loop.close()

    def ask(self, function: Callable[[], Result]) -> Result:
        """Call a function in the thread, and wait until it returns or raises.

        :raises OSError: if the thread has ended.
        """
        if threading.current_thread() is self._thread:
            return function()
        answer: Future[Result] = Future()

        def call() -> None:
            try:
                answer.set_result(function())
            except BaseException as error:  # noqa: BLE001  (raised again in the thread that asks)
                answer.set_exception(error)

        if not self.loop.call(call):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF) + ": the bridge is closed")
        return answer.result()

    def join(self) -> None:
        """Wait for the end of the thread, after it was asked to end."""
        if threading.current_thread() is not self._thread:
            self._thread.join()


class User(Protocol):
    """Whom a wire belongs to at the moment."""

    def received(self, data: bytes) -> None:
        """The program has said something."""

    def drained(self) -> None:
        """Everything that waited has been written."""

    def closed(self) -> None:
        """The wire is closed: the program has ended or reset it, or :meth:`Wire.finish` is done."""


class Wire:
    """A socket to a program: hands on what comes, and keeps what is sent for as long as it must.

    A program that ends one direction ends both: SAM has no half-close.

    :param hub: its thread.
    :param sock: connected, or about to be; it is the wire's from now on.
    :param user: whom it belongs to; may be changed at any time.
    """

    __slots__ = ("user", "peer", "_hub", "_socket", "_watch", "_queue", "_reading", "_finishing", "_over")

    def __init__(self, hub: Hub, sock: socket.socket, user: User) -> None:
        self.user = user
        self.peer = _peer(sock)
        self._hub = hub
        self._socket = sock
        self._queue = bytearray()
        self._reading = True
        self._finishing = False
        self._over = False
        sock.setblocking(False)
        self._watch = Watch(sock, hub.loop, self._happened)
        self._want()

    @property
    def backlog(self) -> int:
        """The number of bytes that wait to be written."""
        return len(self._queue)

    def send(self, data: bytes | bytearray) -> None:
        """Write now what can be written, and the rest later."""
        if self._over:
            return
        sent = 0 if self._queue else self._write(data)
        if sent < len(data):
            self._queue += data[sent:]
            self._hub.held += len(data) - sent
        self._want()

    def read(self, wanted: bool) -> None:
        """Start or stop reading from the program."""
        self._reading = wanted
        self._want()

    def keep(self, size: int) -> None:
        """Drop what waits, but for its first ``size`` bytes."""
        self._hub.held -= max(0, len(self._queue) - size)
        del self._queue[size:]

    def finish(self) -> None:
        """Close as soon as everything is written."""
        self._finishing = True
        if not self._queue:
            self._hub.loop.call(self._gone)  # not now: who calls is in the middle of something

    def close(self) -> None:
        """Close at once, without a call to the user. Idempotent."""
        if not self._over:
            self._retire()
            self._hang_up()

    def crashed(self, now: float) -> None:
        """A bug in a handler: the loop has reported it."""
        self._gone()

    def _want(self) -> None:
        if not self._over:
            self._watch.want((IN if self._reading else 0) | (OUT if self._queue else 0))

    def _happened(self, event: int, now: float) -> None:
        if self._queue and event & OUT:
            self._flush()
        if self._over:
            return
        if self._reading:
            self._read()
        elif not event & OUT:
            self._watch.hung = True  # seen when it is read again
            self._want()

    def _read(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.user.received(data)
        else:
            self._gone()

    def _flush(self) -> None:
        sent = self._write(self._queue[:CHUNK])
        del self._queue[:sent]
        self._hub.held -= sent
        if not self._queue:
            if self._finishing:
                return self._gone()
            self._want()
            self.user.drained()
        return None

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._hub.loop.call(self._gone)
            return 0

    def _gone(self) -> None:
        if not self._over:
            self._retire()
            self.user.closed()  # before the program can see it
            self._hang_up()

    def _retire(self) -> None:
        self._over = True
        self.keep(0)
        self._watch.end()

    def _hang_up(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is not connected any more
        self._hub.loop.discard(self._socket)


def _peer(sock: socket.socket) -> str:
    """The host at the other end; empty if there is none yet."""
    try:
        return str(sock.getpeername()[0])
    except OSError:
        return ""
