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

CHUNK = 256 << 10  # bytes read or written at once

Result = TypeVar("Result")


class Hub:
    """The thread of one network of bridges. Everything in it happens there; :meth:`ask` is for the other threads.

    :raises OSError: if no thread or descriptor is available.
    """

    def __init__(self) -> None:
        self.loop = Loop()
        self.held = 0  # bytes that are buffered for programs that do not read
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
        """Call a function on the thread, and wait for its result or exception.

        :raises OSError: if the thread has ended.
        """
        # It would wait for itself.
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
        """Wait for the end of the thread, after ``loop.stop()``."""
        if threading.current_thread() is not self._thread:
            self._thread.join()


class User(Protocol):
    """Current owner of a wire."""

    def received(self, data: bytes) -> None:
        """Handle bytes of the program."""

    def drained(self) -> None:
        """Continue once everything is written."""

    def closed(self) -> None:
        """Handle the end of the socket: by EOF or reset of the program, or after :meth:`Wire.finish`."""


class Wire:
    """A socket to a program: passes on received bytes, and buffers sent bytes until they are written.

    EOF of a program ends both directions: SAM has no half-close.

    :param hub: the thread.
    :param sock: connected or connecting; the wire owns it from now on.
    :param user: its owner; may be changed at any time.
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
        """Number of unwritten bytes."""
        return len(self._queue)

    def send(self, data: bytes | bytearray) -> None:
        """Write as much as possible now, and the rest later."""
        if self._over:
            return
        # With bytes in the queue the new ones must go behind them, even if the socket has room now.
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
        """Discard the unwritten bytes after the first ``size``."""
        self._hub.held -= max(0, len(self._queue) - size)
        del self._queue[size:]

    def finish(self) -> None:
        """Close once everything is written."""
        self._finishing = True
        if not self._queue:
            self._hub.loop.call(self._gone)  # later: the caller is in the middle of an event

    def close(self) -> None:
        """Close at once without calling the user. Idempotent."""
        if not self._over:
            self._retire()
            self._hang_up()

    def crashed(self, now: float) -> None:
        """Close after a bug in a handler, which the loop has logged."""
        self._gone()

    def _want(self) -> None:
        if not self._over:
            self._watch.set_interest((IN if self._reading else 0) | (OUT if self._queue else 0))

    def _happened(self, event: int, now: float) -> None:
        if self._queue and event & OUT:
            self._flush()
        if self._over:
            return
        if self._reading:
            self._read()
        elif not event & OUT:
            self._watch.hung = True  # handled when reading resumes
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
        # Only a part is copied: with a large queue each event would otherwise copy all of it.
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
            # Later, as in finish(): the user is in the middle of its own event, and may touch this wire again.
            self._hub.loop.call(self._gone)
            return 0

    def _gone(self) -> None:
        if not self._over:
            self._retire()
            self.user.closed()  # before the program can notice
            self._hang_up()

    def _retire(self) -> None:
        self._over = True
        # What was not written is not held any more, and others may use the room.
        self.keep(0)
        self._watch.end()

    def _hang_up(self) -> None:
        try:
            # The program sees the end now; the descriptor is closed only later.
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is not connected any more
        # Closed after this round of the loop: an event for the same number may already be in the list of this round.
        self._hub.loop.discard(self._socket)


def _peer(sock: socket.socket) -> str:
    """Return the host of the other end; empty before the connection."""
    try:
        return str(sock.getpeername()[0])
    except OSError:
        return ""
