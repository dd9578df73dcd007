"""One socket to a SAM bridge: requests and their answers, or lines that the bridge sends by itself."""

from __future__ import annotations

import errno
import functools
import os
import socket
import threading
from collections.abc import Callable

from ...errors import ConnectError, SAMError
from ...eventloop.background import IOThread, Watch
from ...eventloop.poller import IN
from ...streams.stream import Stream
from .deadlines import Deadlines
from .messages import LONGEST, Message, MessageError, parse, pong

OnAnswer = Callable[["Message | OSError"], object]
OnLine = Callable[[bytes], object]
OnEnd = Callable[[OSError], object]

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_ENDED = "the bridge closed the connection"
_NOT_READ = "the bridge does not read its socket"
_SHORT = 64  # bytes of an answer that is likely to come often


class Conversation:
    """One socket to the bridge, for one request at a time (:meth:`ask`) or for all its lines (:meth:`listen`).

    It reads each line up to the newline and no further, so that the bytes of a stream stay in the socket. If the bridge
    sends ``PING`` before an answer, it replies and waits on. Callbacks run on the I/O thread and must not block. The
    owner may call the other methods in any thread.

    :param stream: a connected stream to the bridge, which the conversation owns from now on.
    :param name: of the bridge, in errors.
    :param deadlines: of the requests; ``None`` to make its own.
    :raises OSError: if no thread or descriptor is available; the stream is closed then.
    """

    __slots__ = (
        "stream",
        "name",
        "_io_thread",
        "_watch",
        "_deadlines",
        "_line",
        "_on_answer",
        "_on_line",
        "_on_end",
        "_is_over",
        "_error",
        "read",
    )

    def __init__(self, stream: Stream, name: str, deadlines: Deadlines | None = None) -> None:
        self.stream = stream
        self.name = name
        self.read = 0  # bytes that were read from the socket
        self._line = b""
        self._on_answer: OnAnswer | None = None
        self._on_line: OnLine | None = None
        self._on_end: OnEnd | None = None
        # The I/O thread sets this before it reads the callbacks; other threads read it after they have set a callback.
        # So no callback is lost if the conversation ends at that moment.
        self._is_over = False
        self._error: OSError | None = None  # why it has ended, unless its owner has closed or taken it
        try:
            self._io_thread = IOThread.acquire(self)
        except OSError:
            stream.close()
            raise
        # The I/O thread may have ended and begun again since the bridge was made; deadlines of the old loop never
        # expire.
        self._deadlines = (
            deadlines
            if deadlines is not None and deadlines.loop is self._io_thread.loop
            else Deadlines(self._io_thread.loop)
        )
        self._watch = Watch(stream.socket, self._io_thread.loop, self._on_event)
        # At once, where that is possible: a call of the loop costs a turn, and most conversations are made on its
        # thread.
        if threading.current_thread() is self._io_thread.thread:
            self._watch_it()
        else:
            self._io_thread.loop.call(self._watch_it)

    def ask(self, request: Message | bytes, deadline: float | None, on_answer: OnAnswer) -> None:
        """Send a request. Never blocks.

        :param request: a message or its line; the answer to the request before must have come.
        :param deadline: monotonic seconds; ``None`` for no limit.
        :param on_answer: called once with the answer, or with the error, after which the conversation is closed.
        """
        data = request if isinstance(request, bytes) else request.encode()
        if deadline is not None:
            # Before the request goes out: its answer drops the deadline, and may come before the next line here.
            self._deadlines.set(self, deadline)
        self._on_answer = on_answer
        try:
            if self.stream.socket.send(data) != len(data):
                raise BlockingIOError
        except BlockingIOError:
            # Requests are short and come one at a time: a full buffer is that of a bridge that does not read.
            return self._fail_soon(OSError(errno.ENOBUFS, _NOT_READ))
        except OSError as error:
            return self._fail_soon(error)
        # It ended before the callback was set, so `_fail` found none to call.
        if self._is_over:
            self._fail_soon(ConnectionResetError(errno.ECONNRESET, _ENDED))
        return None

    def listen(self, on_line: OnLine, on_end: OnEnd) -> None:
        """Pass each line on from now on.

        :param on_line: called with each line, including its newline.
        :param on_end: called once with the error, when the conversation has ended without :meth:`close`.
        """
        self._on_line, self._on_end = on_line, on_end
        if self._is_over:
            self._fail_soon(ConnectionResetError(errno.ECONNRESET, _ENDED))

    def say(self, message: Message) -> None:
        """Send a message without waiting for an answer. Never blocks; a failure ends the conversation."""
        data = message.encode()
        try:
            if self.stream.socket.send(data) != len(data):  # half a line would corrupt the next one
                raise BlockingIOError
        except BlockingIOError:
            self._fail_soon(OSError(errno.ENOBUFS, _NOT_READ))
        except OSError as error:
            self._fail_soon(error)

    def take(self) -> Stream:
        """Stop reading lines, and return the stream; only on the I/O thread.

        :returns: the stream; the bytes after the last line are still in its socket.
        """
        self._io_thread.loop.forget(self.stream.fileno())  # closing would remove it from the poller, but it stays open
        self._leave()
        self._on_answer = self._on_line = self._on_end = None
        return self.stream

    def close(self) -> None:
        """End the conversation without calling a callback. Idempotent."""
        # First, so that no callback runs after `close` has returned, except one that the I/O thread is in already.
        self._on_answer = self._on_line = self._on_end = None
        if not self._is_over:
            self._io_thread.loop.call(self._close)

    @property
    def alive(self) -> bool:
        """``True`` if no EOF or error has come on the socket so far. Never blocks."""
        if self._is_over:
            return False
        try:
            # Looked at and not taken: a line that has come is for the I/O thread.
            return bool(self.stream.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def abandon(self) -> None:
        """Only close the descriptor, in a forked child."""
        self.stream.socket.close()

    def crashed(self, now: float) -> None:
        """End the conversation after a bug in a handler."""
        self._fail(OSError(errno.EIO, "a bug in relay; the log has it"))

    # -- on the I/O thread --------------------------------------------------------------------------------------------

    def _watch_it(self) -> None:
        if not self._is_over:
            self._watch.set_interest(IN)

    def expire(self, now: float) -> None:
        """Fail the request, because its deadline has come."""
        if self._on_answer is not None:
            self._fail(ConnectError(f"{self.name}: no answer in time", reason="connect_timeout"))

    def _on_event(self, event: int, now: float) -> None:
        sock = self.stream.socket
        try:
            got, complete = read_line(sock)
            if (
                _QUICKACK is not None and sock.family in _INTERNET
            ):  # the bridge's Nagle waits for our ACK, which would be delayed by 40 ms
                sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        except BlockingIOError:
            return
        except OSError as error:
            return self._fail(error)
        if not got:
            return self._fail(ConnectionResetError(errno.ECONNRESET, _ENDED))
        self.read += len(got)
        self._line += got
        # What comes without a newline is no SAM, and must not fill the memory.
        if len(self._line) > LONGEST:
            return self._fail(MessageError(f"{self.name}: a line of more than {LONGEST} bytes; not SAM"))
        if complete:
            line, self._line = self._line, b""
            self._take_line(line)

    def _take_line(self, line: bytes) -> None:
        if self._on_answer is not None:
            self._take_answer(line)
        elif self._on_line is not None:
            self._on_line(line)
        else:
            self._fail(MessageError(f"{self.name}: the bridge sent a line without a request"))

    def _take_answer(self, line: bytes) -> None:
        try:
            # "STREAM STATUS RESULT=OK" comes for each stream: its parsed form is kept. Longer ones may hold a private
            # key, which no cache should keep.
            answer = _parsed(line) if len(line) <= _SHORT else parse(line)
        except MessageError as error:
            return self._fail(MessageError(f"{self.name}: {error}"))
        if answer.words == ("PING",):
            return self.say(pong(answer.text))
        on_answer, self._on_answer = self._on_answer, None
        self._deadlines.drop(self)
        if on_answer is not None:  # else it was closed meanwhile
            on_answer(answer)
        return None

    def _fail_soon(self, error: OSError) -> None:
        """End the conversation with an error; in any thread."""
        fail = functools.partial(self._fail, error)
        if not self._io_thread.loop.call(fail):  # the I/O thread has ended, so nothing can race
            fail()

    def _fail(self, error: OSError) -> None:
        if not self._is_over:
            self._error = error = self._as_loss(error)
            self._close()
        self._deadlines.drop(self)
        # Taken and cleared before the call: a callback may ask the next question here, or close.
        on_answer, on_end = self._on_answer, self._on_end
        self._on_answer = self._on_line = self._on_end = None
        failure = self._error or self._as_loss(error)
        if on_answer is not None:
            on_answer(failure)
        elif on_end is not None:
            on_end(failure)

    def _as_loss(self, error: OSError) -> OSError:
        if isinstance(error, (SAMError, ConnectError)):
            return error
        failure = self.stream.failure() if self.stream.failure is not None else None
        if isinstance(failure, ConnectError):  # a hop had not reached the bridge after all
            return failure
        why = error.strerror or os.strerror(error.errno or errno.EIO)
        return ConnectError(f"{self.name}: the connection to the bridge was lost ({why})")

    def _close(self) -> None:
        if not self._is_over:
            self._leave()
            self._io_thread.loop.call(self.stream.close)  # after this turn: its events may still come

    def _leave(self) -> None:
        self._is_over = True
        self._deadlines.drop(self)
        self._watch.end()
        self._io_thread.release(self)


_parsed = functools.lru_cache(maxsize=64)(parse)


def read_line(sock: socket.socket) -> tuple[bytes, bool]:
    """Read what has come of a line, up to its newline and no further.

    :param sock: a non-blocking socket.
    :returns: the bytes, empty at EOF; and whether the line is complete.
    :raises OSError: if the socket fails; ``BlockingIOError`` if nothing has come.
    """
    # Looked at first: after the newline come bytes of the stream, which must stay for the engine that splices them.
    seen = sock.recv(LONGEST, socket.MSG_PEEK)
    end = seen.find(b"\n") + 1
    return (sock.recv(end or len(seen)) if seen else b""), end > 0
