"""Opening handshakes under way: in the I/O thread or in an engine's, so that none needs a thread and none waits."""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Callable
from typing import Protocol

from ...eventloop.background import Home, Watch
from ...eventloop.loop import Timer
from ...eventloop.poller import ERR, HUP, IN, OUT
from ...streams.session_socket import session_of
from ...streams.stream import Stream
from .opening import Agreement

_PIECE = 4096  # bytes to receive at once

OnAgreed = Callable[[Agreement | OSError], object]


class Protocolled(Protocol):
    """A handshake without I/O, of one of the two roles."""

    reply: bytes
    outcome: Agreement | None
    problem: str

    def feed(self, data: bytes | memoryview, /) -> None:
        """Read on."""


class Opening:
    """A handshake under way. The constructor may be called in any thread; the rest runs in the thread of its home.

    :param stream: over a connected, non-blocking socket, or an inline session of TLS; it stays with the caller, but for
        a failure, which closes it.
    :param home: the thread.
    :param steps: the handshake.
    :param name: of the far end.
    :param deadline: monotonic seconds, or ``None`` for as long as it takes.
    :param done: called once, in the thread of its home: with the agreement, or with the error.
    :param first: when the far end must have begun, monotonic seconds; ``None`` if it need not.
    :raises OSError: if ``home`` has ended; the stream is closed.
    """

    __slots__ = (
        "name", "stream", "_begun", "_deadline", "_done", "_first", "_home", "_session", "_steps", "_timer", "_unsent",
        "_watch",
    )  # fmt: skip

    def __init__(
        self,
        stream: Stream,
        home: Home,
        steps: Protocolled,
        name: str,
        deadline: float | None,
        done: OnAgreed,
        first: float | None = None,
    ) -> None:
        self.stream = stream
        self.name = name
        self._home = home
        self._steps = steps
        self._deadline = deadline
        self._first = first
        self._done: OnAgreed | None = done
        self._begun = False
        self._session = session_of(stream.socket)
        self._unsent: memoryview | bytes = b""
        self._timer = Timer(home.loop.timers, self._expired)
        self._watch = Watch(stream.socket, home.loop, self._on_event)
        home.hold(self)
        if home.loop.is_here():
            self._begin()
        elif not home.loop.call(self._begin):
            stream.close()
            home.release(self)
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    @property
    def is_over(self) -> bool:
        """``True`` once ``done`` was called."""
        return self._done is None

    def cancel(self, text: str = os.strerror(errno.ECANCELED)) -> None:
        """End it; safe from any thread, and at once in that of its home.

        :param text: the cause, for the error.
        """
        error = OSError(errno.ECANCELED, text)
        if self._home.loop.is_here():
            self._fail(error)
        elif not self._home.loop.call(functools.partial(self._fail, error)) and self._done is not None:
            self.stream.reset()  # the loop has ended before the handshake did

    def abandon(self) -> None:
        """In a forked child: only close the descriptor."""
        if self._session is not None:
            self._session.abandon()
        else:
            self.stream.socket.close()

    def crashed(self, now: float) -> None:
        """A bug in a handler: give it up."""
        self._fail(OSError(errno.EIO, "a bug in relay; the log has it"))

    def _begin(self) -> None:
        if self._done is None:
            return
        now = time.monotonic()
        due = self._deadline
        if self._first is not None and (due is None or self._first < due):
            due = self._first
        if due is not None:
            self._timer.start(due, now)
        self._unsent = self._steps.reply
        self._steps.reply = b""
        self._on_event(IN, now)

    def _on_event(self, event: int, now: float) -> None:
        if self._done is None:
            return
        if event & HUP:
            self._watch.hung = True
        try:
            self._flush()
            if event & (IN | HUP | ERR):
                self._receive()
            if self._steps.outcome is not None and not self._unsent:
                return self._finish(self._steps.outcome)
            if self._steps.problem and not self._unsent:
                raise ConnectionRefusedError(errno.ECONNREFUSED, self._steps.problem)
            self._settle()
        except OSError as error:
            self._fail(error, reset=False)

    def _flush(self) -> None:
        sock, session = self.stream.socket, self._session
        try:
            while self._unsent:
                self._unsent = memoryview(self._unsent)[sock.send(self._unsent) :]
            if session is not None and session.must_flush:
                session.send(b"")
        except BlockingIOError:
            pass

    def _receive(self) -> None:
        session, steps = self._session, self._steps
        try:
            while steps.outcome is None and not steps.problem:
                data = self.stream.socket.recv(_PIECE)
                self._begun = True
                steps.feed(data)
                if steps.reply:
                    self._unsent, steps.reply = steps.reply, b""
                    self._flush()
                if not data and not steps.problem:
                    failure = self.stream.failure() if self.stream.failure is not None else None
                    raise failure if isinstance(failure, OSError) else ConnectionResetError("closed")
                if session is None or not session.has_input:
                    return
        except BlockingIOError:
            pass
        except OSError as error:
            failure = self.stream.failure() if self.stream.failure is not None else None
            if failure is not None and not isinstance(error, type(failure)):
                raise failure from error
            raise

    def _settle(self) -> None:
        session = self._session
        waits = bool(self._unsent) or (session is not None and session.must_flush)
        if session is not None and session.needs_input:
            waits = False
        reads = not self._steps.problem and (session is None or not session.is_stalled)
        self._watch.set_interest((IN if reads else 0) | (OUT if waits else 0))

    def _expired(self, now: float) -> None:
        if self._begun and (self._deadline is None or now < self._deadline):
            if self._deadline is not None:
                self._timer.start(self._deadline, now)
            return
        self._fail(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def _fail(self, error: OSError, *, reset: bool = True) -> None:
        if self._done is None:
            return
        end = self.stream.reset if reset else self.stream.close
        if not self._home.loop.call(end):  # after this turn, for its events may still come
            end()
        self._finish(error)

    def _finish(self, outcome: Agreement | OSError) -> None:
        done, self._done = self._done, None
        self._timer.stop()
        self._watch.end()
        del self._timer  # they refer to each other
        if done is not None:
            done(outcome)
        self._home.release(self)
