"""Standard input and output, or another pair of descriptors, as the client of a stream.

============ ============================ ============ ===============================================================
state        event                        next state   action
============ ============================ ============ ===============================================================
COPYING      input ends                   INPUT_ENDED  half-close the stream, if it has half-close
COPYING      stream takes no more         INPUT_ENDED  keep the error: what the stream has sent is still passed on
COPYING      stream ends                  STREAM_ENDED close the output
COPYING      stream ends, input unneeded  DONE         none; the stream has no half-close, or the input is a terminal
COPYING      reader leaves                READER_GONE  give the input 0.3 s to end
INPUT_ENDED  stream ends                  DONE         raise the error that was kept
INPUT_ENDED  reader leaves                DONE         raise, if bytes were lost
STREAM_ENDED input ends                   DONE         none
STREAM_ENDED stream takes no more         FAILED       raise
STREAM_ENDED stream hangs up              DONE         raise, if it was reset
READER_GONE  input ends                   DONE         raise, if bytes were lost
READER_GONE  stream takes no more         DONE         raise, if bytes were lost
READER_GONE  stream hangs up              DONE         raise, if bytes were lost
READER_GONE  input timeout                FAILED       raise
============ ============================ ============ ===============================================================

The *reader* is the program that reads the output. A limit of time, a failure of the stream and an error of the input or
of the output raise in every state; a stream without half-close is DONE when its answer has lingered. After DONE the
transfer is DRAINING until the bytes that were sent have left this process. FAILED stands for the exception.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import select
import socket
import time

from ..errors import ConnectError, RelayError
from ..streams.checks import check_time
from ..streams.promise import Cancel, Cancellation
from ..streams.stream import Stream
from .descriptors import Direction, Interests, Readiness, SinkError, SourceError, is_same_socket, shut_down

_ROOM = 1 << 19  # bytes for a Unix socket, so that it takes a whole piece at once: measured to spare a sixth of the CPU
_NO_READER = "standard output: its reader has closed it"
_INPUT_TIMEOUT = 0.3  # seconds for the input to end, once the output's reader is gone: a program that ends closes both

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL
_READABLE = select.POLLIN | _GONE
_WRITABLE = select.POLLOUT | _GONE


def carry(
    stream: Stream,
    source: int = 0,
    sink: int = 1,
    *,
    idle_timeout: float | None = None,
    linger: float | None = None,
    cancel: Cancel | None = None,
) -> bool:
    """Copy from one descriptor to a stream, and from the stream to another descriptor.

    Blocks until both directions have ended, and the bytes that were sent have left this process. The EOF of the input
    is passed on as a half-close, and the answer still arrives; the EOF of the stream closes the output. The copy also
    ends when the stream has failed in both directions, when the output's reader is gone, and, if the input is a
    terminal, with the stream.

    The descriptors may refer to a pipe, a socket, a file or a terminal; its state is not changed.

    :param stream: is closed at the end, by a reset if the transfer was cut.
    :param source: the descriptor of the input; it stays open.
    :param sink: that of the output; it refers to the null device once the stream has ended.
    :param idle_timeout: seconds without a byte in either direction after which it is cut; ``None`` for no limit.
    :param linger: seconds without a byte in one direction after the other one has ended; ``None`` for no limit. A
        stream without half-close does not learn of the input's EOF, so its answer needs a limit.
    :param cancel: resets the stream when set.
    :returns: ``False`` if it was cancelled.
    :raises ConnectError: if the target turned out to be unreachable; see ``.reason``.
    :raises RelayError: if the transfer was cut: by the loss of the carrier, a reset, a limit, or an error of the
        output.
    :raises BrokenPipeError: if the output's reader is gone, and bytes are lost or the input goes on.
    :raises ValueError: if a time is negative or not a number.
    :raises TypeError: if it is no number at all.
    """
    try:
        limits = check_time("idle_timeout", idle_timeout), check_time("linger", linger, zero=True)
        exchange = _Exchange(stream, source, sink, *limits)
        try:
            ended = exchange.run(cancel) and exchange.drain(cancel)
        finally:
            exchange.close()
    except BaseException:
        stream.reset()
        raise
    if ended:
        stream.close()
    else:
        stream.reset()
    return ended


class _State(enum.Enum):
    """The state of a transfer; the docstring of the module has the table."""

    COPYING = enum.auto()
    INPUT_ENDED = enum.auto()
    STREAM_ENDED = enum.auto()
    READER_GONE = enum.auto()
    DONE = enum.auto()
    DRAINING = enum.auto()


class _Exchange:
    """Both directions, in one thread.

    :param stream: the stream.
    :param source: the descriptor of the input.
    :param sink: that of the output.
    :param idle: and ``linger``: the limits.
    """

    def __init__(self, stream: Stream, source: int, sink: int, idle: float | None, linger: float | None) -> None:
        stream.socket.setblocking(False)
        if stream.socket.family == socket.AF_UNIX:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
        else:
            with contextlib.suppress(OSError):  # Multipath TCP has no urgent data
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._stream = stream
        self._idle = idle
        self._linger = linger
        self._up = Direction(source, stream.socket.fileno())
        self._down = Direction(stream.socket.fileno(), sink)
        self._interests = Interests()
        self._last = time.monotonic()  # when a byte was moved
        self._queued = 0  # the unsent bytes of the stream at the last look
        self._write_error: BaseException | None = None  # why the stream takes no more
        self._lost = False  # whether bytes were lost because the output has no reader
        self._state = _State.COPYING
        if not stream.answered:
            stream.received = lambda: self._down.copier.moved

    def close(self) -> None:
        """Close what was opened here."""
        self._up.copier.close()
        self._down.copier.close()
        if self._down.copier.moved:
            self._stream.answered = True

    def run(self, cancel: Cancel | None) -> bool:
        """Copy; see :func:`carry`."""
        stop = -1 if cancel is None else cancel.fileno()
        self._interests = Interests(stop)
        while self._state is not _State.DONE:
            self._watch()
            due = self._due()
            events = self._interests.wait(_until(due))
            if stop in events:
                return False
            self._move(events)
            if due is not None and time.monotonic() >= due:
                self._look_at_limits()
        return True

    def drain(self, cancel: Cancel | None) -> bool:
        """Wait until the bytes that were sent have left this process, because a command exits next.

        Both directions may have ended before: the target ends its own, and reads the rest slowly.

        :returns: whether it has; ``False`` if that was cancelled.
        """
        if self._stream.drained is None:
            return True
        shut_down(self._up.sink)
        self._state = _State.DRAINING
        with contextlib.closing(Cancellation()) as drained:
            poller = select.poll()
            poller.register(drained.fileno(), select.POLLIN)
            if cancel is not None:
                poller.register(cancel.fileno(), select.POLLIN)
            self._stream.drained(drained.set)
            while not (events := dict(poller.poll(_until(self._due())))):
                self._look_at_limits()
            if drained.fileno() not in events:
                return False
        if (failure := _failure(self._stream)) is not None:
            raise failure
        return True

    # -- waiting --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Watch the descriptors that the directions wait for.

        No other descriptor is watched, because a hang-up is reported without end. Exceptions are the output, to see its
        reader leave, and the socket after its EOF, to see it fail.
        """
        up, down, interests = self._up, self._down, self._interests
        sock = up.sink
        own = up.interest(sock) | down.interest(sock)
        interests.set(sock, own if own or down.ended is not None else -1)
        interests.set(up.source, up.interest(up.source) or -1)
        interests.set(down.sink, down.interest(down.sink) if down.ended is None else -1)

    def _due(self) -> float | None:
        """Return the time of the next limit if no byte moves until then."""
        limits = []
        if self._state is _State.READER_GONE:
            assert self._down.ended is not None
            limits.append(self._down.ended + _INPUT_TIMEOUT)
        if self._idle is not None:
            limits.append(self._last + self._idle)
        if self._linger is not None and (ended := self._half_ended()) is not None:
            limits.append(max(ended, self._last) + self._linger)
        return min(limits, default=None)

    def _half_ended(self) -> float | None:
        """Return the time at which one direction has ended, if the other one has not."""
        return self._up.ended if self._down.ended is None else self._down.ended

    # -- moving ---------------------------------------------------------------------------------------------------

    def _move(self, events: dict[int, int]) -> None:
        """Move what can be moved now."""
        up, down = self._up, self._down
        on_socket = events.get(up.sink, 0)
        if down.ended is None and (
            on_socket & _READABLE if down.wait_for is Readiness.SOURCE else events.get(down.sink, 0)
        ):
            self._move_down()
        elif events.get(down.sink, 0) & _GONE:
            self._reader_gone()
        if up.ended is None and self._state is not _State.DONE:
            if events.get(up.source, 0) if up.wait_for is Readiness.SOURCE else on_socket & _WRITABLE:
                self._move_up()
            elif down.ended is not None and on_socket & _GONE:
                self._on_hang_up()

    def _move_up(self) -> None:
        before = self._up.copier.moved
        try:
            self._up.wait_for = self._up.copier.move()
        except SourceError as error:
            raise RelayError(f"standard input: {_text(error.__cause__)}") from error
        except SinkError as error:
            self._on_write_error(error.__cause__)
        else:
            if self._up.wait_for is Readiness.NOTHING:
                self._input_ended()
        if self._up.copier.moved != before:
            self._last = time.monotonic()

    def _move_down(self) -> None:
        before = self._down.copier.moved
        try:
            self._down.wait_for = self._down.copier.move()
        except SourceError as error:
            raise self._failure_or(error.__cause__) from error
        except SinkError as error:
            self._cannot_write(error.__cause__)
        else:
            if self._down.wait_for is Readiness.NOTHING:
                self._stream_ended()
        if self._down.copier.moved != before:
            self._last = time.monotonic()

    # -- ends -----------------------------------------------------------------------------------------------------

    def _input_ended(self) -> None:
        self._up.ended = time.monotonic()
        if self._state is _State.READER_GONE:
            self._end_without_reader()
        elif self._state is _State.STREAM_ENDED:
            self._state = _State.DONE
        else:
            self._state = _State.INPUT_ENDED
            if self._stream.half_close:
                shut_down(self._up.sink)

    def _stream_ended(self) -> None:
        """Take the EOF of the stream, which may turn out to be a failure."""
        stream = self._stream
        if stream.settle:
            select.select([], [], [], stream.settle)  # until then the cause is not known
        if (failure := _failure(stream)) is not None:
            raise failure
        # A target that has received an EOF may send nothing.
        has_eof = self._up.ended is not None and stream.half_close
        if not (stream.answered or self._down.copier.moved or has_eof):
            raise ConnectError(f"{self._name()}: closed before sending any data; check that the service is running")
        if self._write_error is not None:
            raise self._failure_or(self._write_error)
        self._down.ended = time.monotonic()
        if self._state is _State.INPUT_ENDED or not stream.half_close or os.isatty(self._up.source):
            self._state = _State.DONE
        else:
            self._state = _State.STREAM_ENDED
            self._close_output()

    def _close_output(self) -> None:
        """Close the output, so that its reader sees EOF, while the input goes on."""
        sink = self._down.sink
        self._interests.set(sink, -1)
        self._down.copier.close()
        if is_same_socket(self._up.source, sink):
            shut_down(sink)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, sink, inheritable=False)  # so that no other file gets the number
        os.close(nothing)

    def _name(self) -> str:
        return self._stream.target or "the stream"

    def _failure_or(self, error: BaseException | None) -> BaseException:
        """Return why the stream failed, as far as it knows."""
        return _failure(self._stream) or RelayError(f"{self._name()}: {_reset_text(error)}")

    def _on_write_error(self, error: BaseException | None) -> None:
        """Take an error of writing to the stream; bytes that it has sent are still passed on."""
        self._up.ended = time.monotonic()
        self._write_error = error
        if self._state is _State.READER_GONE:
            self._end_without_reader()
        elif self._state is _State.STREAM_ENDED:
            raise self._failure_or(error)
        else:
            self._state = _State.INPUT_ENDED

    def _on_hang_up(self) -> None:
        """Take a hang-up of the stream after its EOF."""
        if self._state is _State.READER_GONE:
            return self._end_without_reader()
        with socket.socket(fileno=os.dup(self._up.sink)) as shared:
            number = shared.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise self._failure_or(OSError(number, os.strerror(number)))
        self._state = _State.DONE

    def _cannot_write(self, error: BaseException | None) -> None:
        if not isinstance(error, BrokenPipeError):
            raise RelayError(f"standard output: {_text(error)}") from error
        self._lost = True
        self._reader_gone()

    def _reader_gone(self) -> None:
        """Note that the output has no reader. A program that has ended closes the input as well, now or soon."""
        self._down.ended = time.monotonic()
        if self._state is _State.INPUT_ENDED:
            self._end_without_reader()
        else:
            self._state = _State.READER_GONE

    def _end_without_reader(self) -> None:
        """End, because the output has no reader and the input has ended."""
        if self._lost:
            raise BrokenPipeError(errno.EPIPE, _NO_READER)
        self._state = _State.DONE

    # -- limits ---------------------------------------------------------------------------------------------------

    def _look_at_limits(self) -> None:
        now = time.monotonic()
        if self._state is _State.DONE or (due := self._due()) is None or now < due:
            return
        if self._state is _State.READER_GONE:
            raise BrokenPipeError(errno.EPIPE, _NO_READER)
        if self._still_sends(now):
            return
        name, linger = self._name(), self._linger
        if self._idle is not None and now >= self._last + self._idle:
            raise RelayError(f"{name}: no byte has moved for {self._idle:g} s (--idle-timeout); check the target")
        if self._stream.half_close or self._state is _State.DRAINING:
            raise RelayError(f"{name}: no byte has come for {linger:g} s after one end (--linger); check the target")
        self._state = _State.DONE  # that was the answer

    def _still_sends(self, now: float) -> bool:
        """Return whether the stream has sent queued bytes since the last look; the first look counts as if it had."""
        queued = self._stream.queued()
        if queued and queued != self._queued and (self._idle or self._linger):
            self._queued, self._last = queued, now
            return now < (self._due() or now)
        return False


def _until(due: float | None) -> float | None:
    """Return the milliseconds to wait, for a poller."""
    return None if due is None else max(0.0, due - time.monotonic()) * 1000 + 1


def _failure(stream: Stream) -> BaseException | None:
    return stream.failure() if stream.failure is not None else None


def _text(error: BaseException | None) -> str:
    return getattr(error, "strerror", None) or str(error)


def _reset_text(error: BaseException | None) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ECONNRESET):
        return "the connection was reset; the transfer was cut"
    return f"the connection was lost ({_text(error)})"
