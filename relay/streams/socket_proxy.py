"""Streams behind a socketpair, whose holder needs nothing but the socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from ..eventloop.background import IOThread, Watch
from ..eventloop.loop import Timer
from ..eventloop.poller import ERR, HUP, IN, OUT
from ..eventloop.sockets import set_to_reset, shut_down
from ..eventloop.unix_reset import socketpair
from . import exit_drain
from .stream import Stream

_PIECE = 65536  # bytes that are read at once, and held at most in each direction


def self_contained(stream: Stream, over: Callable[[], object], *, quiet: float = 10.0) -> Stream:
    """Return a stream over a socket whose holder may close it without a call of the stream's methods.

    The end of ``stream`` is its end, and a reset if ``failure()`` of ``stream`` then returns an error. Each direction
    ends alone if ``stream`` has half-close. Else an end of file from the holder is kept until the holder closes the
    socket, and that of ``stream`` ends both.

    :param stream: the stream behind it, which is owned from now on; its ``failure`` and its ``settle`` are used.
    :param over: called once at the end, in the background loop's thread; must not block.
    :param quiet: seconds; see :class:`relay.streams.exit_drain.Sender`.
    :returns: a stream over a non-blocking kernel socket; its ``received`` returns how many bytes have come.
    :raises OSError: if no descriptor or thread is available; the stream is closed then.
    """
    try:
        ours, theirs = socketpair()
    except OSError:
        stream.close()
        raise
    try:
        made = _SocketProxy(stream, ours, over, quiet)
    except OSError:
        stream.close()
        ours.close()
        theirs.close()
        raise
    outer = Stream(theirs, half_close=stream.half_close, target=stream.target)
    outer.received = lambda: made.down.moved
    return outer


class _Direction:
    """One direction. It reads only when everything that it read before is written."""

    __slots__ = ("source", "sink", "held", "moved", "ended", "cut", "end_passed")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.held = memoryview(b"")
        self.moved = 0
        self.ended = False  # nothing more is read
        self.cut = False  # because one of the sockets has failed
        self.end_passed = False  # the sink knows of the end of file

    @property
    def over(self) -> bool:
        """``True`` once everything has been passed on, or was lost."""
        return self.ended and not self.held

    def move(self) -> None:
        """Move the bytes that have come, as far as that needs no waiting."""
        try:
            # Nothing is read that the other side has not taken: at most one piece is held here, so that a slow reader
            # slows its sender down.
            if not self.held and not self.ended:
                data = self.source.recv(_PIECE)
                self.ended = not data
                self.held = memoryview(data)
                self.moved += len(data)
            if self.held:
                self.held = self.held[self.sink.send(self.held) :]
        except BlockingIOError:
            pass
        except OSError:
            # What is held can never be passed on, and would keep the direction from being over.
            self.held = memoryview(b"")
            self.ended = self.cut = True


class _SocketProxy:
    """The bytes between the holder's socket and a stream. Belongs to the background loop's thread."""

    def __init__(self, stream: Stream, outer: socket.socket, over: Callable[[], object], quiet: float) -> None:
        self._stream = stream
        self.quiet = quiet
        self._outer = outer
        self._over: Callable[[], object] | None = over
        self.up = _Direction(outer, stream.socket)
        self.down = _Direction(stream.socket, outer)
        self._settling: Timer | None = None  # until the stream knows whether its end was a failure
        self._on_sent: Callable[[], object] | None = None
        self._io_thread = IOThread.acquire(self)
        loop = self._io_thread.loop
        self._inside = Watch(stream.socket, loop, self._on_inside)
        self._outside = Watch(outer, loop, self._on_outside)
        # Watches belong to the loop's thread, and this is made in the caller's.
        loop.call(self._settle)
        exit_drain.track(self, level=exit_drain.OVER_CARRIERS)

    def when_sent(self, done: Callable[[], object]) -> bool:
        """Close the holder's end at exit, and call ``done`` once the stream has taken what was sent."""

        def look() -> None:
            self._on_sent = done
            if self._over is None:
                done()
            elif not self._outside.hung:
                shut_down(self._outer)  # as a close of the other end: what was sent is still there

        return self._io_thread.loop.call(look)

    def progress(self) -> int:
        """Return how many bytes have left."""
        return self.up.moved - len(self.up.held)

    def __repr__(self) -> str:
        return f"the stream to {self._stream.target or 'a target'}"

    def abandon(self) -> None:
        """In a forked child: only close the descriptors."""
        self._stream.socket.close()
        self._outer.close()

    def crashed(self, now: float) -> None:
        """End it because of a bug in a handler."""
        self._finish(clean=False)

    def _on_inside(self, event: int, now: float) -> None:
        self._on_event(self._inside, event, self.down, self.up)

    def _on_outside(self, event: int, now: float) -> None:
        self._on_event(self._outside, event, self.up, self.down)

    def _on_event(self, watch: Watch, event: int, reads: _Direction, writes: _Direction) -> None:
        if event & HUP:
            watch.hung = True
        # Writing first: it makes room for what is then read.
        if event & OUT:
            writes.move()
        if event & (IN | HUP | ERR):
            reads.move()
        self._settle()

    def _settle(self) -> None:
        """Pass ends on, and wait for what can be done next."""
        if self._settling is not None and not self._stream.half_close:
            return None
        down, up = self.down, self.up
        if down.over and not down.end_passed and self._settling is None:  # also if the holder takes no more
            return self._end()
        if up.over and (self._outside.hung or down.end_passed):  # the holder has closed it, or both have ended
            return self._finish(clean=True)
        if up.over and not up.end_passed and self._stream.half_close:
            up.end_passed = True
            try:
                self._stream.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was reset: the other direction sees that
        self._inside.set_interest(_interest(down, up))
        self._outside.set_interest(_interest(up, down))
        return None

    def _end(self) -> None:
        """Pass on that the stream has ended or failed, once it is known which."""
        # Once only: after the time this is called again, and must then decide.
        settle, self._stream.settle = self._stream.settle, 0.0
        if settle:
            now = time.monotonic()
            self._settling = Timer(self._io_thread.loop.timers, self._cause_is_known)
            self._settling.start(now + settle, now)
            if self._stream.half_close:
                return self._settle()  # the other direction goes on
            # Level-triggered: the end would be reported in each turn until that time.
            self._inside.end()
            self._outside.end()
            return None
        failure = self._stream.failure
        is_cut = self.down.cut or self.up.cut or (failure is not None and failure() is not None)
        if is_cut or self.up.over or not self._stream.half_close:
            return self._finish(clean=not is_cut)
        self.down.end_passed = True
        try:
            self._outer.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the holder has closed it: the other direction sees that
        return self._settle()

    def _cause_is_known(self, now: float) -> None:
        self._settling = None
        if self._over is not None:
            self._end()

    def _finish(self, *, clean: bool) -> None:
        over, self._over = self._over, None
        if over is None:
            return
        self._inside.end()
        self._outside.end()
        if not clean:
            set_to_reset(self._outer)
        # After this turn, for its events may still come.
        self._io_thread.loop.call(self._stream.close if clean else self._stream.reset)
        self._io_thread.loop.discard(self._outer)
        # After the close, in the order of calls: the exit may go on only when the carrier below knows of this end.
        if self._on_sent is not None:
            self._io_thread.loop.call(self._on_sent)
        try:
            over()
        finally:
            self._io_thread.release(self)


def _interest(reads: _Direction, writes: _Direction) -> int:
    return (IN if not reads.held and not reads.ended else 0) | (OUT if writes.held else 0)
