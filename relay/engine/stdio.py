"""Standard input and output, or another pair of descriptors, as the client of a stream."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import time

from ..errors import ConnectError, RelayError
from ..streams.cancellation import Cancel, Cancellation
from ..streams.checks import check_time
from ..streams.stream import Stream
from .descriptors import Direction, Readiness, SinkError, SourceError

__all__ = ["carry"]

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
        self._stream = stream
        self._name = stream.target or "the stream"
        self._idle = idle
        self._linger = linger
        self._socket = stream.socket.fileno()
        self._source = source
        self._sink = sink
        self._up = Direction(source, self._socket)
        self._down = Direction(self._socket, sink)
        self._poller = select.poll()
        self._watched: dict[int, int] = {}
        self._last = time.monotonic()  # when a byte was moved
        self._queued = 0  # the unsent bytes of the stream at the last look
        self._write_error: BaseException | None = None  # why the stream takes no more
        self._reader_gone_at: float | None = None  # since when the output has no reader
        self._lost = False  # whether bytes were lost by that
        self._done = False
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
        if cancel is not None:
            self._poller.register(stop, select.POLLIN)
        while not self._done:
            self._watch()
            due = self._due()
            events = dict(self._poller.poll(_until(due)))
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
        self._shut_down(self._socket)
        self._done, self._reader_gone_at = False, None
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
        up, down = self._up, self._down
        own = up.interest(self._socket) | down.interest(self._socket)
        self._set_interest(self._socket, own if own or down.ended is not None else -1)
        self._set_interest(self._source, up.interest(self._source) or -1)
        self._set_interest(self._sink, down.interest(self._sink) if down.ended is None else -1)

    def _set_interest(self, descriptor: int, mask: int) -> None:
        before = self._watched.get(descriptor, -1)
        if mask == before:
            return
        self._watched[descriptor] = mask
        if mask < 0:
            self._poller.unregister(descriptor)
        else:
            self._poller.register(descriptor, mask)

    def _due(self) -> float | None:
        """Return the time of the next limit if no byte moves until then."""
        limits = [self._reader_gone_at + _INPUT_TIMEOUT] if self._reader_gone_at is not None else []
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
        on_socket = events.get(self._socket, 0)
        if down.ended is None and (
            on_socket & _READABLE if down.wait_for is Readiness.SOURCE else events.get(self._sink, 0)
        ):
            self._move_down()
        elif events.get(self._sink, 0) & _GONE:
            self._reader_gone()
        if up.ended is None and not self._done:
            if events.get(self._source, 0) if up.wait_for is Readiness.SOURCE else on_socket & _WRITABLE:
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
        if self._reader_gone_at is not None:
            self._end_without_reader()
        elif self._down.ended is not None:
            self._done = True
        elif self._stream.half_close:
            self._shut_down(self._socket)

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
            raise ConnectError(f"{self._name}: closed before sending any data; check that the service is running")
        if self._write_error is not None:
            raise self._failure_or(self._write_error)
        self._down.ended = time.monotonic()
        if self._up.ended is not None or not stream.half_close or os.isatty(self._source):
            self._done = True
        else:
            self._close_output()

    def _close_output(self) -> None:
        """Close the output, so that its reader sees EOF, while the input goes on."""
        self._set_interest(self._sink, -1)
        self._down.copier.close()
        if _is_same_socket(self._source, self._sink):
            self._shut_down(self._sink)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, self._sink, inheritable=False)  # so that no other file gets the number
        os.close(nothing)

    @staticmethod
    def _shut_down(descriptor: int) -> None:
        with socket.socket(fileno=os.dup(descriptor)) as shared:
            try:
                shared.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was reset, which the other direction sees

    def _failure_or(self, error: BaseException | None) -> BaseException:
        """Return why the stream failed, as far as it knows."""
        return _failure(self._stream) or RelayError(f"{self._name}: {_reset_text(error)}")

    def _on_write_error(self, error: BaseException | None) -> None:
        """Take an error of writing to the stream; bytes that it has sent are still passed on."""
        self._up.ended = time.monotonic()
        self._write_error = error
        if self._reader_gone_at is not None:
            self._end_without_reader()
        elif self._down.ended is not None:
            raise self._failure_or(error)

    def _on_hang_up(self) -> None:
        """Take a hang-up of the stream after its EOF."""
        if self._reader_gone_at is not None:
            return self._end_without_reader()
        with socket.socket(fileno=os.dup(self._socket)) as shared:
            number = shared.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise self._failure_or(OSError(number, os.strerror(number)))
        self._done = True

    def _cannot_write(self, error: BaseException | None) -> None:
        if not isinstance(error, BrokenPipeError):
            raise RelayError(f"standard output: {_text(error)}") from error
        self._lost = True
        self._reader_gone()

    def _reader_gone(self) -> None:
        """Note that the output has no reader. A program that has ended closes the input as well, now or soon."""
        self._reader_gone_at = self._down.ended = time.monotonic()
        if self._up.ended is not None:
            self._end_without_reader()

    def _end_without_reader(self) -> None:
        """End, because the output has no reader and the input has ended."""
        if self._lost:
            raise BrokenPipeError(errno.EPIPE, _NO_READER)
        self._done = True

    # -- limits ---------------------------------------------------------------------------------------------------

    def _look_at_limits(self) -> None:
        now = time.monotonic()
        if self._done or (due := self._due()) is None or now < due:
            return
        if self._reader_gone_at is not None:
            raise BrokenPipeError(errno.EPIPE, _NO_READER)
        if self._still_sends(now):
            return
        if self._idle is not None and now >= self._last + self._idle:
            raise RelayError(f"{self._name}: no byte has moved for {self._idle:g} s (--idle-timeout)")
        if self._stream.half_close:
            raise RelayError(f"{self._name}: no byte has come for {self._linger:g} s after one end (--linger)")
        self._done = True  # that was the answer

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


def _is_same_socket(source: int, sink: int) -> bool:
    """Return whether both are one socket: its peer sees no EOF while the other descriptor is open."""
    first, second = os.fstat(source), os.fstat(sink)
    return stat.S_ISSOCK(second.st_mode) and (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _text(error: BaseException | None) -> str:
    return getattr(error, "strerror", None) or str(error)


def _reset_text(error: BaseException | None) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ECONNRESET):
        return "the connection was reset; the transfer was cut"
    return f"the connection was lost ({_text(error)})"
