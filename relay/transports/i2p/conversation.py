"""One socket to a SAM bridge: what is asked there, and what is answered."""

from __future__ import annotations

import errno
import functools
import os
import socket
import threading
from collections.abc import Callable

from ...errors import ConnectError, SAMError
from ...eventloop.background import Pump, Watch
from ...eventloop.poller import IN
from ...streams.stream import Stream
from .deadlines import Clock
from .messages import LONGEST, Message, MessageError, parse, pong

__all__ = ["Conversation", "OnEnd", "OnLine", "OnAnswer", "read_line"]

OnAnswer = Callable[["Message | OSError"], object]
OnLine = Callable[[bytes], object]
OnEnd = Callable[[OSError], object]

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
_ENDED = "it ended the conversation"
_DEAF = "it does not read what it is asked"
_SHORT = 64  # bytes of an answer that is likely to come again and again


class Conversation:
    """One socket to the bridge. It is either asked for one thing at a time, or listened to.

    A line is taken off the socket up to its newline and no further, so that what follows it stays there for whoever
    takes the stream. A ``PING`` in place of an answer is answered, and waited on. Callbacks come in the pump's thread
    and must not block; the other methods may be called from any thread by whoever owns the conversation.

    :param stream: a connected stream to the bridge, which is owned from now on.
    :param name: of the bridge, in errors.
    :param clock: for the deadlines of what is asked; ``None`` for one of its own.
    :raises OSError: if there is no thread or descriptor to be had; the stream is closed then.
    """

    __slots__ = (
        "stream",
        "name",
        "_pump",
        "_watch",
        "_clock",
        "_line",
        "_on_answer",
        "_on_line",
        "_on_end",
        "_quick",
        "_over",
        "_error",
        "read",
    )

    def __init__(self, stream: Stream, name: str, clock: Clock | None = None) -> None:
        self.stream = stream
        self.name = name
        self.read = 0  # bytes that were read
        self._line = b""
        self._on_answer: OnAnswer | None = None
        self._on_line: OnLine | None = None
        self._on_end: OnEnd | None = None
        # The pump's thread sets this before it takes whom to tell, and the others look at it after they have set them:
        # nobody waits for a conversation that has ended just before.
        self._over = False
        self._error: OSError | None = None  # why it is over, if nobody has closed or taken it
        self._quick = stream.socket.family in (socket.AF_INET, socket.AF_INET6) and _QUICKACK is not None
        try:
            self._pump = Pump.hold(self)
        except OSError:
            stream.close()
            raise
        self._clock = clock if clock is not None and clock.loop is self._pump.loop else Clock(self._pump.loop)
        self._watch = Watch(stream.socket, self._pump.loop, self._on_event)
        if threading.current_thread() is self._pump.thread:
            self._begin()
        else:
            self._pump.loop.call(self._begin)

    def ask(self, request: Message | bytes, deadline: float | None, on_answer: OnAnswer) -> None:
        """Send a request. Never blocks.

        :param request: what is asked, or its line; the answer to the one before it has come.
        :param deadline: monotonic seconds; ``None`` for as long as it takes.
        :param on_answer: called once: with the answer; or with the error, and then the conversation is closed.
        """
        data = request if isinstance(request, bytes) else request.encode()
        if deadline is not None:
            self._clock.set(self, deadline)
        self._on_answer = on_answer
        try:
            if self.stream.socket.send(data) != len(data):
                raise OSError(errno.ENOBUFS, _DEAF)
        except OSError as error:
            return self._fail_soon(error)
        if self._over:
            self._fail_soon(ConnectionResetError(errno.ECONNRESET, _ENDED))
        return None

    def listen(self, on_line: OnLine, on_end: OnEnd) -> None:
        """From now on have each line told, and the end once.

        :param on_line: called with each line, its newline included.
        :param on_end: called when the conversation is over and nobody has closed it; it is closed then.
        """
        self._on_line, self._on_end = on_line, on_end
        if self._over:
            self._fail_soon(ConnectionResetError(errno.ECONNRESET, _ENDED))

    def say(self, message: Message) -> None:
        """Send something that has no answer, or whose answer is heard. Never blocks; a failure shows as the end."""
        data = message.encode()
        try:
            sent = self.stream.socket.send(data)
        except OSError:
            return
        if sent != len(data):  # half a line would spoil the next one
            self._fail_soon(OSError(errno.ENOBUFS, _DEAF))

    def take(self) -> Stream:
        """Have the stream, which is watched no longer; only in the pump's thread.

        :returns: the stream, with everything that came after the last line still to be read.
        """
        self._pump.loop.forget(self.stream.fileno())  # it is not closed, so nothing takes it out of the poller
        self._leave()
        self._on_answer = self._on_line = self._on_end = None
        return self.stream

    def close(self) -> None:
        """End it; nobody is told. Idempotent."""
        self._on_answer = self._on_line = self._on_end = None
        if not self._over:
            self._pump.loop.call(self._close)

    @property
    def alive(self) -> bool:
        """Whether the other side has not ended it, as far as can be seen at this moment. Never blocks."""
        if self._over:
            return False
        try:
            return bool(self.stream.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def abandon(self) -> None:
        """In a forked child: close the descriptor and nothing else."""
        self.stream.socket.close()

    def crashed(self, now: float) -> None:
        """A bug in a handler: end it."""
        self._fail(OSError(errno.EIO, "a bug in relay; the log has it"))

    # -- in the pump's thread -----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._over:
            self._watch.want(IN)

    def expire(self, now: float) -> None:
        """The deadline of what is asked has come."""
        if self._on_answer is not None:
            self._fail(ConnectError(f"{self.name}: no answer in time", reason="connect_timeout"))

    def _on_event(self, event: int, now: float) -> None:
        sock = self.stream.socket
        try:
            got, complete = read_line(sock)
            if self._quick:  # the bridge's Nagle waits for our ACK, which would be delayed by 40 ms
                sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK or 0, 1)
        except BlockingIOError:
            return
        except OSError as error:
            return self._fail(error)
        if not got:
            return self._fail(ConnectionResetError(errno.ECONNRESET, _ENDED))
        self.read += len(got)
        self._line += got
        if len(self._line) > LONGEST:
            return self._fail(MessageError(f"{self.name}: a line of more than {LONGEST} bytes; that is not SAM"))
        if complete:
            line, self._line = self._line, b""
            self._take_line(line)

    def _take_line(self, line: bytes) -> None:
        if self._on_answer is not None:
            self._answer(line)
        elif self._on_line is not None:
            self._on_line(line)
        else:
            self._fail(MessageError(f"{self.name}: it said something that it was not asked"))

    def _answer(self, line: bytes) -> None:
        try:
            answer = _parsed(line) if len(line) <= _SHORT else parse(line)
        except MessageError as error:
            return self._fail(MessageError(f"{self.name}: {error}"))
        if answer.words == ("PING",):
            return self.say(pong(answer.text))
        on_answer, self._on_answer = self._on_answer, None
        self._clock.drop(self)
        if on_answer is not None:  # else it was closed meanwhile
            on_answer(answer)
        return None

    def _fail_soon(self, error: OSError) -> None:
        """Fail; in any thread."""
        fail = functools.partial(self._fail, error)
        if not self._pump.loop.call(fail):  # the pump's thread has ended, and what is over has nobody to race with
            fail()

    def _fail(self, error: OSError) -> None:
        if not self._over:
            self._error = error = self._lost(error)
            self._close()
        self._clock.drop(self)
        on_answer, on_end = self._on_answer, self._on_end
        self._on_answer = self._on_line = self._on_end = None
        failure = self._error or self._lost(error)
        if on_answer is not None:
            on_answer(failure)
        elif on_end is not None:
            on_end(failure)

    def _lost(self, error: OSError) -> OSError:
        if isinstance(error, (SAMError, ConnectError)):
            return error
        failure = self.stream.failure() if self.stream.failure is not None else None
        if isinstance(failure, ConnectError):  # the hop before it has not reached the bridge after all
            return failure
        why = error.strerror or os.strerror(error.errno or errno.EIO)
        return ConnectError(f"{self.name}: the connection to the bridge was lost ({why})")

    def _close(self) -> None:
        if not self._over:
            self._leave()
            self._pump.loop.call(self.stream.close)  # after this turn, for its events may still come

    def _leave(self) -> None:
        self._over = True
        self._clock.drop(self)
        self._watch.end()
        self._pump.let_go(self)


_parsed = functools.lru_cache(maxsize=64)(parse)


def read_line(sock: socket.socket) -> tuple[bytes, bool]:
    """Take what there is of a line off a socket, up to its newline and no further.

    :param sock: a non-blocking one.
    :returns: what there is, empty at the end of file; and whether the line is complete.
    :raises OSError: ``BlockingIOError`` if there is nothing yet.
    """
    seen = sock.recv(LONGEST, socket.MSG_PEEK)
    end = seen.find(b"\n") + 1
    return (sock.recv(end or len(seen)) if seen else b""), end > 0
