"""Probes of a target: a stream to it, and what that has to send before the target counts as one that works."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import ConnectError
from ..eventloop.background import IOThread, Watch
from ..eventloop.loop import Timer
from ..eventloop.poller import IN
from ..streams.dialer import Dialer, Upgrade
from ..streams.promise import Abort, OnResult
from ..streams.stream import Stream

_LONGEST_LINE = 4096  # bytes of the first line of an HTTP answer
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})(?:[ \r\n]|$)")


@dataclass(frozen=True, slots=True)
class ProbeSchedule:
    """The probes of each of several targets, now and then.

    :param probe: ``connect``, ``banner`` or ``http://PATH``; see :func:`answered`.
    :param interval: seconds between two probes.
    :param timeout: seconds for one probe at most.
    :param is_wanted: returns whether there is to be another probe; called in the I/O thread, must not block.
    """

    probe: str
    interval: float
    timeout: float
    is_wanted: Callable[[], bool] = field(default=lambda: True, compare=False)


def answered(dialer: Dialer, probe: str, host: str) -> Dialer:
    """Return a dialer of the same target, which fails unless the target has answered a probe.

    The streams are of no further use: close them.

    :param dialer: makes the streams; the new one need not be closed.
    :param probe: ``connect`` for no answer, ``banner`` for a byte, or ``http://PATH`` for a status below 500.
    :param host: of the target, for the header of HTTP.
    """
    if probe == "connect":
        return dialer
    request = b""
    if probe != "banner":
        path = "/" + probe.removeprefix("http://").lstrip("/")
        lines = (f"GET {path} HTTP/1.1", f"Host: {host}", "User-Agent: relay-probe", "Connection: close", "", "")
        request = "\r\n".join(lines).encode("latin-1", "replace")

    def begin(stream: Stream, deadline: float | None, done: OnResult) -> Abort:
        return _Conversation(request, stream, deadline, done).cancel

    return Upgrade(dialer, begin=begin)


class _Conversation:
    """A request and the answer to it, in the I/O thread.

    :param request: the first bytes to the target; none if the target begins.
    :param stream: connected; it belongs to the conversation until that is done.
    :param deadline: monotonic seconds, or ``None`` for as long as it takes.
    :param done: called once in that thread, with the stream or with the error; the stream is then closed.
    :raises OSError: if the system has no thread or descriptor left.
    """

    def __init__(self, request: bytes, stream: Stream, deadline: float | None, done: OnResult) -> None:
        self._request = request
        self._stream = stream
        self._deadline = deadline
        self._done: OnResult | None = done
        self._line = b""
        self._home = IOThread.acquire(self)
        loop = self._home.loop
        self._timer = Timer(loop.timers, lambda now: self._finish(TimeoutError("no answer in time")))
        self._watch = Watch(stream.socket, loop, self._on_event)
        loop.call(self._begin)

    def cancel(self) -> None:
        """End it without an outcome, and close the stream; from any thread."""
        self._home.loop.call(functools.partial(self._finish, None))

    def abandon(self) -> None:
        """In a forked child: only close the descriptor."""
        self._stream.socket.close()

    def crashed(self, now: float) -> None:
        """A bug in a handler: give it up."""
        self._finish(ConnectError("a bug in relay; the log has it"))

    def _begin(self) -> None:
        if self._done is None:
            return
        if self._deadline is not None:
            self._timer.start(self._deadline, time.monotonic())
        try:
            self._stream.socket.setblocking(False)
            if self._request:
                self._stream.socket.send(self._request)  # it fits, as the first bytes of a stream
            self._watch.set_interest(IN)
        except OSError as error:
            self._finish(error)

    def _on_event(self, event: int, now: float) -> None:
        try:
            data = self._stream.socket.recv(_LONGEST_LINE)
        except BlockingIOError:
            return
        except OSError as error:
            return self._finish(error)
        if not self._request:
            self._end("" if data else "the target closed the connection without a byte")
        else:
            self._line += data
            if not data or b"\n" in self._line or len(self._line) >= _LONGEST_LINE:
                found = _STATUS.match(self._line)
                problem = "the answer is not HTTP" if found is None else f"status {int(found[1])}"
                self._end("" if found is not None and int(found[1]) < 500 else problem)

    def _end(self, problem: str) -> None:
        self._finish(ConnectError(problem) if problem else self._stream)

    def _finish(self, outcome: Stream | OSError | None) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        self._watch.end()
        self._timer.stop()
        if outcome is not self._stream:
            self._home.loop.call(self._stream.close)  # after this turn, for its events may still come
        self._home.release(self)
        if outcome is not None:
            done(outcome)
