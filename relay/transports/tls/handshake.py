"""TLS handshakes: in the I/O thread or in an engine's, so that none needs a thread and none waits for another."""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Callable

from ...eventloop.background import Home, IOThread, Watch
from ...eventloop.loop import Timer
from ...eventloop.poller import IN
from ...streams.stream import Stream
from .inline import InlineStream
from .session import Session

OnResult = Callable[[Stream | OSError], object]


class Handshake:
    """A handshake under way. The constructor may be called in any thread; the rest runs in the thread of its home.

    :param session: whose; it belongs to the handshake until that is done.
    :param deadline: monotonic seconds, or ``None`` for as long as it takes.
    :param done: called once, in the thread of its home: with the stream; or with the error, the transport then closed:
        :class:`ssl.SSLError` (the peer got an alert), :class:`TimeoutError`, ``ECANCELED``, or how the connection
        was lost. Must not block.
    :param first: when the peer must have begun, monotonic seconds; ``None`` if it need not.
    :param home: the thread of an engine, which gets a stream for itself alone; ``None`` for the I/O thread.
    :raises OSError: if the system has no thread or descriptor left, or ``home`` has ended; the transport is closed.
    """

    __slots__ = ("session", "_home", "_is_inline", "_deadline", "_first", "_done", "_timer", "_watch")

    def __init__(
        self,
        session: Session,
        deadline: float | None,
        done: OnResult,
        first: float | None = None,
        home: Home | None = None,
    ) -> None:
        self.session = session
        self._deadline = deadline
        self._first = first
        self._done: OnResult | None = done
        self._is_inline = home is not None
        try:
            if home is None:
                home = IOThread.acquire(self)
            else:
                home.hold(self)
        except OSError:
            session.transport.close()
            raise
        self._home = home
        loop = home.loop
        self._timer = Timer(loop.timers, self._expired)
        self._watch = Watch(session.transport.socket, loop, self._on_event)
        # At once in the thread of the engine, which saves a turn of the loop for each client.
        if self._is_inline and loop.is_here():
            self._begin()
        elif not loop.call(self._begin):
            session.transport.close()
            home.release(self)
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    @property
    def stream(self) -> Stream:
        """The stream under the session."""
        return self.session.transport

    @property
    def name(self) -> str:
        """The name of the far end."""
        return self.session.name

    @property
    def is_over(self) -> bool:
        """``True`` once :meth:`done <Handshake>` was called."""
        return self._done is None

    def cancel(self, text: str = os.strerror(errno.ECANCELED)) -> None:
        """End it; safe from any thread, and at once in that of its home.

        :param text: the cause, for the error.
        """
        error = OSError(errno.ECANCELED, text)
        if self._home.loop.is_here():
            self.give_up(error)
        elif not self._home.loop.call(functools.partial(self.give_up, error)) and self._done is not None:
            self.session.transport.reset()  # the loop has ended before the handshake did

    def give_up(self, error: OSError) -> None:
        """End it, by a reset of the connection."""
        if self._done is not None:
            self._watch.end()
            self._timer.stop()
            reset = self.session.transport.reset
            if not self._home.loop.call(reset):  # after this turn, for its events may still come
                reset()
            self._finish(error)

    def abandon(self) -> None:
        """In a forked child: only close the descriptor."""
        self.session.transport.socket.close()

    def crashed(self, now: float) -> None:
        """A bug in a handler: give it up."""
        self.give_up(OSError(errno.EIO, "a bug in relay; the log has it"))

    def _begin(self) -> None:
        if self._done is None:
            return
        now = time.monotonic()
        due = self._deadline
        if self._first is not None and (due is None or self._first < due):
            due = self._first
        if due is not None:
            self._timer.start(due, now)
        self._on_event(0, now)

    def _on_event(self, event: int, now: float) -> None:
        try:
            mask = self.session.records.handshake(readable=self._watch.mask == IN)
            if mask:
                return self._watch.set_interest(mask)
            if self._is_inline:
                # The engine watches the same number with a handler of its own.
                self._watch.end()
                stream: Stream = InlineStream(self.session, self._home)
            else:
                stream = self.session.open(self._watch)
        except OSError as error:
            self._watch.end()
            self._timer.stop()
            self.session.transport.close()
            self._finish(error)
        else:
            self._timer.stop()
            self._finish(stream)

    def _expired(self, now: float) -> None:
        if self.session.records.begun and (self._deadline is None or now < self._deadline):
            if self._deadline is not None:
                self._timer.start(self._deadline, now)
            return
        self.give_up(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def _finish(self, outcome: Stream | OSError) -> None:
        done, self._done = self._done, None
        del self._timer  # they refer to each other, and a session has 50 KB to free
        if done is not None:
            done(outcome)
        self._home.release(self)  # last: the stream's session holds the I/O thread by now
