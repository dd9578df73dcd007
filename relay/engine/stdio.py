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
from .descriptors import Mover, SinkError, SourceError, WaitFor

__all__ = ["carry"]

_ROOM = 1 << 19  # bytes for a Unix socket, so that it takes a whole piece at once: measured to spare a sixth of the CPU
_UNREAD = "standard output: nobody reads it any more"
_LAST_WORDS = 0.3  # seconds for the input to end, once nobody reads the output: whoever ends closes both

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
    """Carry what comes from one descriptor to a stream, and what comes from the stream to another descriptor.

    Blocks until both directions have ended, and what was sent has left this process. The end of the input is passed on
    as a half-close, and the answer still comes; the end of the stream closes the output. It also ends when the stream
    takes no more and says no more, when nobody reads the output any more, and, if the input is a terminal, with the
    stream.

    What the descriptors refer to is left as it is, and may be of any kind: a pipe, a socket, a file, a terminal.

    :param stream: it is owned from now on: closed in the end, by a reset if it was cut.
    :param source: the descriptor of the input; it stays open.
    :param sink: that of the output; it refers to nothing once the stream has ended.
    :param idle_timeout: seconds without a byte in either direction after which it is cut; ``None`` for no limit.
    :param linger: seconds without a byte in one direction after the other one has ended; ``None`` for no limit. A
        stream without half-close is not told of the input's end, so that its answer needs one.
    :param cancel: cuts it when set.
    :returns: whether it came to its end; ``False`` if it was cancelled.
    :raises ConnectError: if it turned out that the stream leads nowhere; ``.reason`` tells.
    :raises RelayError: why else it was cut, in one line: the carrier was lost, there was a reset, a limit was reached,
        the output takes no more.
    :raises BrokenPipeError: if nobody reads the output any more, and bytes are lost, or the input goes on.
    :raises ValueError: if a time is negative or not a number.
    :raises TypeError: if it is no number at all.
    """
    try:
        limits = check_time("idle_timeout", idle_timeout), check_time("linger", linger, zero=True)
        conversation = _Conversation(stream, source, sink, *limits)
        try:
            ended = conversation.run(cancel) and conversation.drain(cancel)
        finally:
            conversation.close()
    except BaseException:
        stream.reset()
        raise
    if ended:
        stream.close()
    else:
        stream.reset()
    return ended


class _Way:
    """One direction.

    :param source: the descriptor that it reads.
    :param sink: the one that it writes.
    """

    def __init__(self, source: int, sink: int) -> None:
        self.mover = Mover(source, sink)
        self.source = source
        self.sink = sink
        self.wait_for = WaitFor.SOURCE
        self.ended: float | None = None  # when it did

    def interest(self, descriptor: int) -> int:
        """The events of a descriptor that it waits for."""
        if self.ended is not None:
            return 0
        if self.wait_for is WaitFor.SOURCE:
            return select.POLLIN if descriptor == self.source else 0
        return select.POLLOUT if descriptor == self.sink else 0


class _Conversation:
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
        self._up = _Way(source, self._socket)
        self._down = _Way(self._socket, sink)
        self._poller = select.poll()
        self._watched: dict[int, int] = {}
        self._last = time.monotonic()  # when a byte was moved
        self._queued = 0  # what the stream had not passed on when that was last looked at
        self._refused: BaseException | None = None  # why the stream takes no more
        self._unread: float | None = None  # since when nobody reads the output
        self._lost = False  # whether bytes were lost by that
        self._done = False
        if not stream.answered:
            stream.received = lambda: self._down.mover.moved

    def close(self) -> None:
        """Close what was opened here."""
        self._up.mover.close()
        self._down.mover.close()
        if self._down.mover.moved:
            self._stream.answered = True

    def run(self, cancel: Cancel | None) -> bool:
        """Carry; see :func:`carry`."""
        stop = -1 if cancel is None else cancel.fileno()
        if cancel is not None:
            self._poller.register(stop, select.POLLIN)
        while not self._done:
            self._watch()
            due = self._due()
            events = dict(self._poller.poll(_until(due)))
            if stop in events:
                return False
            self._heed(events)
            if due is not None and time.monotonic() >= due:
                self._look_at_limits()
        return True

    def drain(self, cancel: Cancel | None) -> bool:
        """Wait until what was sent has left this process, for a command exits next.

        Both directions may have ended before: the target ends its own, and reads the rest slowly.

        :returns: whether it has; ``False`` if that was cancelled.
        """
        if self._stream.drained is None:
            return True
        self._shut_down(self._socket)
        self._done, self._unread = False, None
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
        """Wait for what the directions wait for.

        A descriptor for which nobody waits is not watched, for a hang-up is told without end; but the output always is,
        to see its reader go, and so is the socket once it has ended, to see it take no more.
        """
        up, down = self._up, self._down
        own = up.interest(self._socket) | down.interest(self._socket)
        self._want(self._socket, own if own or down.ended is not None else -1)
        self._want(self._source, up.interest(self._source) or -1)
        self._want(self._sink, down.interest(self._sink) if down.ended is None else -1)

    def _want(self, descriptor: int, mask: int) -> None:
        before = self._watched.get(descriptor, -1)
        if mask == before:
            return
        self._watched[descriptor] = mask
        if mask < 0:
            self._poller.unregister(descriptor)
        else:
            self._poller.register(descriptor, mask)

    def _due(self) -> float | None:
        """When the next limit is reached if no byte moves until then."""
        limits = [self._unread + _LAST_WORDS] if self._unread is not None else []
        if self._idle is not None:
            limits.append(self._last + self._idle)
        if self._linger is not None and (ended := self._half_ended()) is not None:
            limits.append(max(ended, self._last) + self._linger)
        return min(limits, default=None)

    def _half_ended(self) -> float | None:
        """When the one direction has ended, if the other one has not."""
        return self._up.ended if self._down.ended is None else self._down.ended

    # -- moving ---------------------------------------------------------------------------------------------------

    def _heed(self, events: dict[int, int]) -> None:
        """Do what can be done now."""
        up, down = self._up, self._down
        on_socket = events.get(self._socket, 0)
        if down.ended is None and (
            on_socket & _READABLE if down.wait_for is WaitFor.SOURCE else events.get(self._sink, 0)
        ):
            self._move_down()
        elif events.get(self._sink, 0) & _GONE:
            self._reader_gone()
        if up.ended is None and not self._done:
            if events.get(self._source, 0) if up.wait_for is WaitFor.SOURCE else on_socket & _WRITABLE:
                self._move_up()
            elif down.ended is not None and on_socket & _GONE:
                self._takes_no_more()

    def _move_up(self) -> None:
        before = self._up.mover.moved
        try:
            self._up.wait_for = self._up.mover.move()
        except SourceError as error:
            raise RelayError(f"standard input: {_text(error.__cause__)}") from error
        except SinkError as error:
            self._refuse(error.__cause__)
        else:
            if self._up.wait_for is WaitFor.NOTHING:
                self._input_ended()
        if self._up.mover.moved != before:
            self._last = time.monotonic()

    def _move_down(self) -> None:
        before = self._down.mover.moved
        try:
            self._down.wait_for = self._down.mover.move()
        except SourceError as error:
            raise self._broken(error.__cause__) from error
        except SinkError as error:
            self._cannot_write(error.__cause__)
        else:
            if self._down.wait_for is WaitFor.NOTHING:
                self._stream_ended()
        if self._down.mover.moved != before:
            self._last = time.monotonic()

    # -- ends -----------------------------------------------------------------------------------------------------

    def _input_ended(self) -> None:
        self._up.ended = time.monotonic()
        if self._unread is not None:
            self._leave()
        elif self._down.ended is not None:
            self._done = True
        elif self._stream.half_close:
            self._shut_down(self._socket)

    def _stream_ended(self) -> None:
        """The stream has come to its end; it may be known that this was none."""
        stream = self._stream
        if stream.settle:
            select.select([], [], [], stream.settle)  # until then nobody knows
        if (failure := _failure(stream)) is not None:
            raise failure
        was_told = self._up.ended is not None and stream.half_close  # that the input is over: then it may say nothing
        if not (stream.answered or self._down.mover.moved or was_told):
            raise ConnectError(f"{self._name}: closed before sending any data; check that the service is running")
        if self._refused is not None:
            raise self._broken(self._refused)
        self._down.ended = time.monotonic()
        if self._up.ended is not None or not stream.half_close or os.isatty(self._source):
            self._done = True
        else:
            self._close_output()

    def _close_output(self) -> None:
        """Have whoever reads the output see its end, while the input goes on."""
        self._want(self._sink, -1)
        self._down.mover.close()
        if _is_same_socket(self._source, self._sink):
            self._shut_down(self._sink)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, self._sink, inheritable=False)  # so that nothing else gets the number
        os.close(nothing)

    @staticmethod
    def _shut_down(descriptor: int) -> None:
        with socket.socket(fileno=os.dup(descriptor)) as shared:
            try:
                shared.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was reset, which the other direction sees

    def _broken(self, error: BaseException | None) -> BaseException:
        """Why the stream failed, as far as it knows."""
        return _failure(self._stream) or RelayError(f"{self._name}: {_reset_text(error)}")

    def _refuse(self, error: BaseException | None) -> None:
        """The stream takes no more; what it has said before is still passed on."""
        self._up.ended = time.monotonic()
        self._refused = error
        if self._unread is not None:
            self._leave()
        elif self._down.ended is not None:
            raise self._broken(error)

    def _takes_no_more(self) -> None:
        """The stream hung up, and has said everything."""
        if self._unread is not None:
            return self._leave()
        with socket.socket(fileno=os.dup(self._socket)) as shared:
            number = shared.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise self._broken(OSError(number, os.strerror(number)))
        self._done = True

    def _cannot_write(self, error: BaseException | None) -> None:
        if not isinstance(error, BrokenPipeError):
            raise RelayError(f"standard output: {_text(error)}") from error
        self._lost = True
        self._reader_gone()

    def _reader_gone(self) -> None:
        """Nobody reads the output: whoever has ended has closed the input as well, or is about to."""
        self._unread = self._down.ended = time.monotonic()
        if self._up.ended is not None:
            self._leave()

    def _leave(self) -> None:
        """Nobody reads the output, and the input is over."""
        if self._lost:
            raise BrokenPipeError(errno.EPIPE, _UNREAD)
        self._done = True

    # -- limits ---------------------------------------------------------------------------------------------------

    def _look_at_limits(self) -> None:
        now = time.monotonic()
        if self._done or (due := self._due()) is None or now < due:
            return
        if self._unread is not None:
            raise BrokenPipeError(errno.EPIPE, _UNREAD)
        if self._still_sends(now):
            return
        if self._idle is not None and now >= self._last + self._idle:
            raise RelayError(f"{self._name}: no byte has moved for {self._idle:g} s (--idle-timeout)")
        if self._stream.half_close:
            raise RelayError(f"{self._name}: no byte has come for {self._linger:g} s after one end (--linger)")
        self._done = True  # that was the answer

    def _still_sends(self, now: float) -> bool:
        """Whether what the stream was sent has moved on since the last look; the first one counts as if it had."""
        queued = self._stream.queued()
        if queued and queued != self._queued and (self._idle or self._linger):
            self._queued, self._last = queued, now
            return now < (self._due() or now)
        return False


def _until(due: float | None) -> float | None:
    """Milliseconds to wait, for a poller."""
    return None if due is None else max(0.0, due - time.monotonic()) * 1000 + 1


def _failure(stream: Stream) -> BaseException | None:
    return stream.failure() if stream.failure is not None else None


def _is_same_socket(source: int, sink: int) -> bool:
    """Whether both are one socket, whose end nobody sees while the other descriptor is open."""
    ours, theirs = os.fstat(source), os.fstat(sink)
    return stat.S_ISSOCK(theirs.st_mode) and (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _text(error: BaseException | None) -> str:
    return getattr(error, "strerror", None) or str(error)


def _reset_text(error: BaseException | None) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ECONNRESET):
        return "the connection was reset; the transfer was cut"
    return f"the connection was lost ({_text(error)})"
