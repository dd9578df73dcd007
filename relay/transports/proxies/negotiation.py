"""The dialogue with a proxy before its stream can be used; no byte is read beyond the last answer."""

from __future__ import annotations

import errno
import functools
import socket
import threading
import time
from collections.abc import Callable, Generator
from typing import NamedTuple

from ...errors import ConnectError
from ...eventloop.background import IOThread, Watch
from ...eventloop.loop import Timer
from ...eventloop.poller import IN, OUT
from ...streams.promise import OnResult
from ...streams.stream import Stream

_PEEK = 4096  # bytes that are looked at at once

Length = Callable[[bytes | bytearray], int]


class Question(NamedTuple):
    """A question for the proxy, and the form of its answer.

    :param data: the bytes to send; empty to wait for another answer to the last question.
    :param length: returns how many of the bytes that have come are the answer; 0 while it is incomplete.
    :param late: the text of the error if it does not come in time.
    """

    data: bytes
    length: Length
    late: str


Dialogue = Generator[Question, bytes, None]
"""Yields questions, is sent the answers, returns if the stream can be used and raises an :class:`OSError` if not."""


class Negotiation:
    """A dialogue under way. The constructor may be called in any thread; the rest runs in the background loop's.

    The bytes after the last answer stay in the socket, for the holder of the stream.

    :param stream: to the proxy; non-blocking.
    :param dialogue: the questions.
    :param deadline: monotonic seconds, or ``None`` for as long as it takes.
    :param done: called once, in the background loop's thread: with the stream, or with the error and the
        stream closed.
    :param lost: makes the error of how the stream has ended meanwhile: its ``failure``, or what its socket said, or an
        :class:`EOFError`.
    :raises OSError: if no thread or descriptor is available; the stream is still the caller's then.
    """

    __slots__ = (
        "_deadline",
        "_dialogue",
        "_done",
        "_heard",
        "_lost",
        "_io_thread",
        "_question",
        "_stream",
        "_timer",
        "_unsent",
        "_watch",
    )

    def __init__(
        self,
        stream: Stream,
        dialogue: Dialogue,
        deadline: float | None,
        done: OnResult,
        lost: Callable[[BaseException], OSError],
    ) -> None:
        self._stream = stream
        self._dialogue = dialogue
        self._deadline = deadline
        self._done: OnResult | None = done
        self._lost = lost
        self._question: Question | None = None
        self._unsent = memoryview(b"")
        self._heard = bytearray()
        self._io_thread = IOThread.acquire(self)
        loop = self._io_thread.loop
        self._timer = Timer(loop.timers, self._expired)
        self._watch = Watch(stream.socket, loop, self._on_event)
        if threading.current_thread() is self._io_thread.thread:
            self._begin()
        else:
            loop.call(self._begin)

    def give_up(self) -> None:
        """Reset the stream without a call of ``done``; from any thread, and without effect once it is done."""
        if self._done is not None:
            self._io_thread.loop.call(self._abort)

    def abandon(self) -> None:
        """In a forked child: only close the descriptor."""
        self._stream.socket.close()

    def crashed(self, now: float) -> None:
        """A bug in a handler: give it up."""
        self._fail(OSError(errno.EIO, "a bug in relay; the log has it"))

    # -- in the background loop's thread -------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._deadline is not None:
            self._timer.start(self._deadline, time.monotonic())
        self._ask(None)

    def _ask(self, answer: bytes | None) -> None:
        """Go on with an answer: to the next question, or to the end."""
        try:
            question = next(self._dialogue) if answer is None else self._dialogue.send(answer)
        except StopIteration:
            return self._finish(self._stream)
        except OSError as error:
            return self._fail(error)
        self._question = question
        self._unsent = memoryview(question.data)
        self._heard = bytearray()
        return self._move()

    def _on_event(self, event: int, now: float) -> None:
        if self._unsent:
            self._move()
        else:
            self._hear()

    def _move(self) -> None:
        """Send what is unsent, as far as that needs no waiting, and wait."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._stream.socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError as error:
            return self._ended(error)
        return self._watch.set_interest(OUT if self._unsent else IN)

    def _hear(self) -> None:
        assert self._question is not None
        sock = self._stream.socket
        try:
            # Looked at first: what follows the answer is the target's, and must stay in the socket for the holder of
            # the stream.
            seen = sock.recv(_PEEK, socket.MSG_PEEK)
            if not seen:
                return self._ended(EOFError())
            known = len(self._heard)
            self._heard += seen
            length = self._question.length(self._heard)
            del self._heard[known:]
            self._heard += sock.recv(length - known if length else len(seen))
        except BlockingIOError:
            return None
        except OSError as error:
            return self._ended(error)
        self._stream.answered = True
        return self._ask(bytes(self._heard)) if length == len(self._heard) else None

    def _ended(self, error: Exception) -> None:
        """The stream has ended; why, it may know a moment later."""
        if self._stream.settle > 0 and self._stream.failure is not None:
            self._io_thread.loop.forget(self._stream.fileno())
            now = time.monotonic()
            self._timer.stop()
            self._timer = Timer(self._io_thread.loop.timers, functools.partial(self._settled, error))
            self._timer.start(now + self._stream.settle, now)
        else:
            self._settled(error, 0.0)

    def _settled(self, error: Exception, now: float) -> None:
        failure = self._stream.failure() if self._stream.failure is not None else None
        self._fail(self._lost(failure or error))

    def _expired(self, now: float) -> None:
        late = self._question.late if self._question is not None else ""
        self._stop(self._stream.reset, ConnectError(late, reason="connect_timeout"))

    def _abort(self) -> None:
        if self._done is not None:
            self._done = None
            self._stop(self._stream.reset, None)

    def _fail(self, error: OSError) -> None:
        self._stop(self._stream.close, error)

    def _stop(self, end: Callable[[], object], error: OSError | None) -> None:
        self._io_thread.loop.call(end)  # after this turn, for its events may still come
        self._finish(error)

    def _finish(self, outcome: Stream | OSError | None) -> None:
        done, self._done = self._done, None
        self._timer.stop()
        # It may wait in the middle, with a password in its frame.
        self._dialogue.close()
        self._io_thread.loop.forget(self._stream.fileno())  # it stays open, so it must be taken out of the poller here
        self._watch.end()
        try:
            if done is not None and outcome is not None:
                done(outcome)
        finally:
            self._io_thread.release(self)
