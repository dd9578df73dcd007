"""A stream behind a socket that its holder may close whenever he likes, and nobody needs to be told."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from ..eventloop.background import Pump, Watch
from ..eventloop.loop import Timer
from ..eventloop.poller import ERR, HUP, IN, OUT
from ..eventloop.sockets import set_to_reset
from ..eventloop.unix_reset import socketpair
from .stream import Stream

__all__ = ["passage"]

_PIECE = 65536  # bytes that are read at once, and held at most in each direction


def passage(stream: Stream, over: Callable[[], object]) -> Stream:
    """Another stream that leads to this one, for whoever closes its socket and tells nobody.

    The end of the stream is the end of the other one, and a reset if the stream then knows of a failure. An end of file
    from the other one is passed on where the stream has half-close, and else kept until the holder closes.

    :param stream: it is owned from now on; its ``failure`` and its ``settle`` are heeded.
    :param over: called once when it is over, in the pump's thread; must not block.
    :returns: a stream over a non-blocking kernel socket; its ``received`` tells how many bytes have come.
    :raises OSError: if there is no descriptor or thread to be had; the stream is closed then.
    """
    try:
        ours, theirs = socketpair()
    except OSError:
        stream.close()
        raise
    try:
        made = _Passage(stream, ours, over)
    except OSError:
        stream.close()
        ours.close()
        theirs.close()
        raise
    outer = Stream(theirs, half_close=stream.half_close, target=stream.target)
    outer.received = lambda: made.down.moved
    return outer


class _Way:
    """One direction. It reads only when all that it read before is written."""

    __slots__ = ("source", "sink", "held", "moved", "ended", "cut")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.held = memoryview(b"")
        self.moved = 0
        self.ended = False  # nothing more is read
        self.cut = False  # because one of the sockets has failed

    @property
    def over(self) -> bool:
        """Whether all that will ever come has been passed on, or was lost."""
        return self.ended and not self.held

    def move(self) -> None:
        """Move what there is, as far as that needs no waiting."""
        try:
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
            self.held = memoryview(b"")
            self.ended = self.cut = True


class _Passage:
    """Belongs to the pump's thread."""

    def __init__(self, stream: Stream, outer: socket.socket, over: Callable[[], object]) -> None:
        self._stream = stream
        self._outer = outer
        self._over: Callable[[], object] | None = over
        self.up = _Way(outer, stream.socket)
        self.down = _Way(stream.socket, outer)
        self._settling: Timer | None = None  # until it is known what the end of the stream was
        self._told = False  # whether the end of the holder's bytes was passed on
        self._pump = Pump.hold(self)
        loop = self._pump.loop
        self._inside = Watch(stream.socket, loop, self._on_inside)
        self._outside = Watch(outer, loop, self._on_outside)
        loop.call(self._settle)

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        self._stream.socket.close()
        self._outer.close()

    def crashed(self, now: float) -> None:
        """A bug in a handler: end it."""
        self._finish(clean=False)

    def _on_inside(self, event: int, now: float) -> None:
        self._on_event(self._inside, event, self.down, self.up)

    def _on_outside(self, event: int, now: float) -> None:
        self._on_event(self._outside, event, self.up, self.down)

    def _on_event(self, watch: Watch, event: int, reads: _Way, writes: _Way) -> None:
        if event & HUP:
            watch.hung = True
        if event & OUT:
            writes.move()
        if event & (IN | HUP | ERR):
            reads.move()
        self._settle()

    def _settle(self) -> None:
        """Pass ends on, and wait for what can be done next."""
        if self._settling is not None:
            return None
        down, up = self.down, self.up
        if down.over:  # also where its holder takes no more; what the stream still says when it takes none is passed on
            return self._end()
        if up.over and self._outside.hung:  # its holder has closed it, and all that he sent is on its way
            return self._finish(clean=True)
        if up.over and not self._told and self._stream.half_close:
            self._told = True
            try:
                self._stream.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was reset, which shows in the other direction
        self._inside.want(_interest(down, up))
        self._outside.want(_interest(up, down))
        return None

    def _end(self) -> None:
        """The stream has ended, or failed: pass that on once it is known which."""
        settle, self._stream.settle = self._stream.settle, 0.0
        if settle:
            self._inside.end()
            self._outside.end()
            now = time.monotonic()
            self._settling = Timer(self._pump.loop.timers, lambda now: self._end())
            self._settling.start(now + settle, now)
            return
        failure = self._stream.failure
        self._finish(clean=not (self.down.cut or self.up.cut or (failure is not None and failure() is not None)))

    def _finish(self, *, clean: bool) -> None:
        over, self._over = self._over, None
        if over is None:
            return
        self._inside.end()
        self._outside.end()
        if not clean:
            set_to_reset(self._outer)
        # After this turn, for its events may still come.
        self._pump.loop.call(self._stream.close if clean else self._stream.reset)
        self._pump.loop.discard(self._outer)
        try:
            over()
        finally:
            self._pump.let_go(self)


def _interest(reads: _Way, writes: _Way) -> int:
    return (IN if not reads.held and not reads.ended else 0) | (OUT if writes.held else 0)
