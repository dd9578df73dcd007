"""Adapters: objects with the socket interface as streams over a kernel socket."""

from __future__ import annotations

import errno
import inspect
import logging
import select
import socket
import threading
from collections.abc import Callable
from typing import Any, cast

from ..errors import ConnectError
from ..eventloop.sockets import is_tls, reset
from .bridged import CHUNK, PATIENCE, BridgedStream, small_pair
from .ssl_bridge import SSLBridge
from .stream import Stream

logger = logging.getLogger("relay")

_INTERNET = (int(socket.AF_INET), int(socket.AF_INET6))


def as_stream(made: Any) -> Stream:
    """Turn what a factory returned, or a listener object accepted, into a stream over a non-blocking kernel socket.

    :param made: a :class:`~relay.Stream`, a :class:`socket.socket` (connected, or its connect in progress), an
        :class:`ssl.SSLSocket`, or any object with ``recv``, ``send`` or ``sendall``, and ``close``.
    :returns: the stream; it owns ``made``.
    :raises TypeError: if it is none of these.
    :raises ValueError: if it is a socket that is closed or not a stream socket.
    """
    if isinstance(made, Stream):
        if type(made) is Stream:  # the subclasses of transports are prepared
            _prepared(made.socket)
        return made
    if is_tls(made):
        return SSLBridge(made).stream
    if isinstance(made, socket.socket):
        return Stream(_prepared(made))
    if _can(made, "recv") and _can(made, "close") and (_can(made, "sendall") or _can(made, "send")):
        return Bridge(made).stream
    # A factory that was written with `async def` by mistake. Closed, since Python warns of a coroutine that was never
    # awaited, and the error below says more.
    if inspect.iscoroutine(made):
        made.close()
    raise TypeError(
        f"{type(made).__name__} is not a stream; return a socket, a relay.Stream, "
        "or an object with recv, send or sendall, and close"
    )


def _can(made: Any, name: str) -> bool:
    return callable(getattr(made, name, None))


def _prepared(made: socket.socket) -> socket.socket:
    """Return the socket, non-blocking, if it is a stream socket."""
    if made.fileno() < 0:
        raise ValueError("the socket is closed; return a connected or connecting one")
    # Of its type and its family: socket.socket makes an Enum of each, which takes longer than a system call.
    numbers = cast("socket.SocketType", super(socket.socket, made))
    if numbers.type != socket.SOCK_STREAM:
        kind = made.type.name
        made.close()
        raise ValueError(f"expected a stream socket, got {kind}")
    made.setblocking(False)
    # A relay passes on what it gets at once; Nagle's algorithm would wait for the acknowledgement of the message
    # before.
    if numbers.family in _INTERNET:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


class Bridge:
    """Two threads between a socket-like object that may block and one end of a socketpair.

    The ``inward`` thread moves what the object receives, the ``outward`` thread what the engine sends. The object's
    ``shutdown`` and ``close`` are called under one lock: an SSH channel must not send an end of file after its close.

    :param made: the object. One whose ``close`` does not wake a thread that is in its ``recv`` keeps that thread.
    """

    def __init__(self, made: Any) -> None:
        self.error: BaseException | None = None  # why the object failed
        self.cut = False  # the engine gave the stream up
        self._made = made
        self._lock = threading.Lock()
        self._closed = False
        self._passed = 0  # bytes that the object took
        self._sent = threading.Event()  # all that the engine sent was passed on, or cannot be
        self._left = 2
        self._end_output = _end_output(made)
        try:
            # Both threads wait as long as it takes. The limits are those of the connection, which closes the object.
            if _can(made, "settimeout"):
                made.settimeout(None)
            ours, self._inner = small_pair()
        except BaseException:
            _close(made)
            raise
        self.stream = BridgedStream(ours, self, half_close=self._end_output is not None)
        name = type(made).__name__
        for work in (self._inward, self._outward):
            threading.Thread(target=work, name=f"relay bridge {name} {work.__name__[1:]}", daemon=True).start()

    def _inward(self) -> None:
        receive, send = self._made.recv, self._inner.sendall
        try:
            while data := self._receive(receive):
                send(data)
            # Only this direction: the object may still take what the engine sends.
            self._inner.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the engine closed its end: the outward thread also sees that
        self._thread_over()

    def _receive(self, receive: Callable[[int], Any]) -> bytes:
        try:
            data = receive(CHUNK)
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise _wrong(self._made, "recv", "bytes", data)
            return bytes(data)
        except BaseException as error:  # noqa: BLE001  (a foreign object may raise anything: the stream has failed)
            self._fail(error)
            return b""

    def _outward(self) -> None:
        try:
            while data := self._inner.recv(CHUNK):
                if not self._send(data):
                    break
        except OSError:
            self.cut = True  # closed with bytes unread
        # The engine's EOF, and no reset: only then may the object be half-closed.
        if self.error is None and not self.cut and self._end_output is not None:
            self._half_close()
            # Not closed with the half-close: the reply may be under way, and the inward thread still needs the object.
            self._wait_for_close()
        self._sent.set()
        self._close()
        self._thread_over()

    def finish(self) -> None:
        """Close the object, whose other end is closed: at once after a reset, else when it has taken the rest."""
        passed = -1
        # Progress counts and not time: a slow object may take long for what was sent, and keeps it as long as it takes
        # some.
        while not (self.cut or self._sent.is_set() or passed == self._passed):
            passed = self._passed
            self._sent.wait(PATIENCE)
        self._close()

    def _send(self, data: bytes) -> bool:
        made = self._made
        try:
            if _can(made, "sendall"):
                made.sendall(data)
                self._passed += len(data)
            else:
                view = memoryview(data)
                while view:
                    sent = _count(made, made.send(view), len(view))
                    self._passed += sent
                    view = view[sent:]
        except BaseException as error:  # noqa: BLE001  (as above)
            self._fail(error)
            return False
        return True

    def _half_close(self) -> None:
        with self._lock:
            if not self._closed and self._end_output is not None:
                try:
                    self._end_output()
                except BaseException as error:  # noqa: BLE001  (as above)
                    logger.debug("%r: its output could not be ended: %s", self._made, error)

    def _wait_for_close(self) -> None:
        """A half-close is over when the engine's end is closed (a hang-up), or the object has ended and been read."""
        poller = select.poll()
        poller.register(self._inner, 0)
        poller.poll()

    def _fail(self, error: BaseException) -> None:
        # What it raises after its close is the consequence of the close, and no failure.
        if not self._closed and self.error is None:
            self.error = error
        try:
            self._inner.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the engine's end is closed

    def _close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            made = self._made
            # Only a socket has a reset; all other objects have only their close.
            if isinstance(made, socket.socket) and self.cut:
                reset(made)
                return
            try:
                if _can(made, "shutdown"):
                    made.shutdown(socket.SHUT_RDWR)  # wakes a thread that is in recv
            except BaseException as error:  # noqa: BLE001  (as above)
                logger.debug("%r: %s", made, error)
            _close(made)

    def _thread_over(self) -> None:
        with self._lock:
            self._left -= 1
            # The inner end belongs to both threads; closed by the first, its number could be another socket's for the
            # second.
            last = not self._left
        if last:
            self._inner.close()


def _count(made: Any, sent: Any, most: int) -> int:
    """Return what ``send`` returned, if it can be the number of bytes that it took.

    :raises OSError: if it took none, as paramiko's does on a closed channel.
    :raises ConnectError: if it is no such number.
    """
    if not isinstance(sent, int) or not 0 <= sent <= most:
        raise _wrong(made, "send", f"the number of bytes that it took, of {most}", sent)
    if not sent:
        raise BrokenPipeError(errno.EPIPE, "the object takes no more bytes")
    return sent


def _wrong(made: Any, method: str, expected: str, got: Any) -> ConnectError:
    shown = repr(got) if isinstance(got, int) else type(got).__name__
    text = f"{type(made).__name__}.{method}: expected {expected}, got {shown}; fix the object"
    return ConnectError(text, reason="factory_error")


def _close(made: Any) -> None:
    try:
        made.close()
    except BaseException as error:  # noqa: BLE001  (a foreign object may raise anything)
        logger.debug("%r: %s", made, error)


def _end_output(made: Any) -> Callable[[], object] | None:
    """Return the function that half-closes the object, if it has one."""
    if _can(made, "shutdown_write"):
        return made.shutdown_write  # type: ignore[no-any-return]
    if _can(made, "shutdown"):
        return lambda: made.shutdown(socket.SHUT_WR)
    return None
