"""The greetings on a carrier, in the I/O thread: what the other end says before the first frame."""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from ...eventloop.background import IOThread, Watch
from ...eventloop.loop import Timer
from ...eventloop.poller import ERR, HUP, IN, OUT
from ...streams.stream import Stream
from .wire import LONGEST_HELLO, LONGEST_WORD, ProtocolError

Said = TypeVar("Said")

_LONGEST = LONGEST_HELLO + LONGEST_WORD  # bytes, of whichever of the two


class Greeting(Generic[Said]):
    """Sends what this end says first, and reads what the other end says. The constructor may be called in any thread.

    :param carrier: over a connected, non-blocking kernel socket; owned until it is handed to ``done``.
    :param hello: what to send; empty to wait for the other end's.
    :param read: reads what has come: :func:`~relay.transports.resume.wire.read_hello` or ``read_answer``.
    :param deadline: monotonic seconds, or ``None`` for as long as it takes.
    :param done: called once in the I/O thread: with what the other end said, and what came behind it; or with the
        error, after which the carrier is closed.
    :raises OSError: if no thread or descriptor is available; the carrier is closed.
    """

    __slots__ = ("_carrier", "_deadline", "_done", "_heard", "_io_thread", "_read", "_timer", "_unsent", "_watch")

    def __init__(
        self,
        carrier: Stream,
        hello: bytes,
        read: Callable[[bytes | bytearray], tuple[Said, int] | None],
        deadline: float | None,
        done: Callable[[Said | OSError, bytes], object],
    ) -> None:
        self._carrier = carrier
        self._unsent = memoryview(hello)
        self._read = read
        self._deadline = deadline
        self._done: Callable[[Said | OSError, bytes], object] | None = done
        self._heard = bytearray()
        try:
            self._io_thread = IOThread.acquire(self)
        except OSError:
            carrier.close()
            raise
        loop = self._io_thread.loop
        self._timer = Timer(loop.timers, self._expired)
        self._watch = Watch(carrier.socket, loop, self._on_event)
        loop.call(self._begin)

    def cancel(self, last: bytes = b"") -> None:
        """End it; safe from any thread.

        :param last: to be sent first, if the other end may have begun something.
        """
        self._io_thread.loop.call(functools.partial(self._cancel, last))

    def expire_within(self, seconds: float) -> None:
        """Let it end in so many seconds at the latest. In the I/O thread."""
        now = time.monotonic()
        if self._done is not None and now + seconds < self._timer.due:
            self._timer.start(now + seconds, now)

    def abandon(self) -> None:
        """In a forked child: only close the descriptor."""
        self._carrier.socket.close()

    def crashed(self, now: float) -> None:
        """A bug in a handler: give it up."""
        self._fail(OSError(errno.EIO, "a bug in relay; the log has it"))

    def _cancel(self, last: bytes) -> None:
        if self._done is None:
            return
        end = self._carrier.reset
        if last and not self._unsent:
            try:
                self._carrier.socket.send(last)
                end = self._carrier.close  # a reset could overtake it
            except OSError:
                pass
        self._fail(OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)), end)

    def _begin(self) -> None:
        if self._done is None:
            return
        now = time.monotonic()
        if self._deadline is not None:
            self._timer.start(self._deadline, now)
        self._on_event(IN, now)

    def _on_event(self, event: int, now: float) -> None:
        if self._done is None:
            return
        if event & HUP:
            self._watch.hung = True
        try:
            if self._unsent:
                self._send()
                self._look()
            if event & (IN | HUP | ERR) and self._done is not None:
                self._receive()
        except OSError as error:
            return self._fail(error)
        if self._done is not None:
            # The other end may answer before it has everything; what comes then would be for the next owner.
            self._watch.set_interest((0 if self._heard else IN) | OUT if self._unsent else IN)
        return None

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._carrier.socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = memoryview(b"")  # the answer may be there already, and says why

    def _receive(self) -> None:
        try:
            data = self._carrier.socket.recv(_LONGEST)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._cause(error) from None
        if not data:
            raise self._cause(ConnectionResetError(errno.ECONNRESET, "it was closed"))
        self._heard += data
        self._look()

    def _look(self) -> None:
        """Understand what has come, once the other end has everything."""
        if self._unsent or not self._heard:
            return
        try:
            found = self._read(self._heard)
        except ProtocolError as error:
            raise OSError(errno.EPROTO, str(error)) from None
        if found is not None:
            said, size = found
            self._finish(said, bytes(self._heard[size:]))

    def _cause(self, error: OSError) -> OSError:
        """Return why the carrier has ended, as it knows that itself, or the error of its socket."""
        failure = self._carrier.failure() if self._carrier.failure is not None else None
        return failure if isinstance(failure, OSError) else error

    def _expired(self, now: float) -> None:
        self._fail(TimeoutError(errno.ETIMEDOUT, "no answer in time"))

    def _fail(self, error: OSError, end: Callable[[], object] | None = None) -> None:
        if self._done is None:
            return
        self._io_thread.loop.call(end or self._carrier.reset)  # after this turn, for its events may still come
        self._finish(error, b"")

    def _finish(self, outcome: Said | OSError, rest: bytes) -> None:
        done, self._done = self._done, None
        self._timer.stop()
        self._watch.end()
        del self._timer  # they refer to each other
        if done is not None:
            done(outcome, rest)
        self._io_thread.release(self)
