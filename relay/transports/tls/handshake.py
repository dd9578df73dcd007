"""TLS handshakes: all of them in the I/O thread, so that none needs a thread and none waits for another."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from ...eventloop.background import IOThread, Watch
from ...eventloop.loop import Timer
from ...eventloop.poller import IN
from .session import Session, TLSStream

__all__ = ["Handshake"]

OnResult = Callable[[TLSStream | OSError], object]


class Handshake:
    """A handshake under way. The constructor may be called in any thread; the rest runs in the I/O thread's.

    :param session: whose; it belongs to the handshake until that is done.
    :param deadline: monotonic seconds, or ``None`` for as long as it takes.
    :param done: called once, in the I/O thread: with the stream; or with the error, when the transport is closed:
        :class:`ssl.SSLError` (the peer got an alert), :class:`TimeoutError`, ``ECANCELED``, or how the connection
        was lost. Must not block.
    :param first: when the peer must have begun, monotonic seconds; ``None`` if it need not.
    :raises OSError: if the system has no thread or descriptor left; the transport is closed then.
    """

    __slots__ = ("session", "_io_thread", "_deadline", "_first", "_done", "_timer", "_watch")

    def __init__(
        self,
        session: Session,
        deadline: float | None,
        done: OnResult,
        first: float | None = None,
    ) -> None:
        self.session = session
        self._deadline = deadline
        self._first = first
        self._done: OnResult | None = done
        try:
            self._io_thread = IOThread.acquire(self)
        except OSError:
            session.transport.close()
            raise
        loop = self._io_thread.loop
        self._timer = Timer(loop.timers, self._expired)
        self._watch = Watch(session.transport.socket, loop, self._on_event)
        loop.call(self._begin)

    def cancel(self) -> None:
        """End it; safe from any thread."""
        self._io_thread.loop.call(lambda: self.give_up(OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))))

    def give_up(self, error: OSError) -> None:
        """End it, by a reset of the connection."""
        if self._done is not None:
            self._watch.end()
            self._timer.stop()
            self._io_thread.loop.call(self.session.transport.reset)  # after this turn, for its events may still come
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

    def _finish(self, outcome: TLSStream | OSError) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(outcome)
        self._io_thread.release(self)  # last: the stream's session holds the I/O thread by now
