"""One direction of a connection: bytes from a source socket to a sink socket, copied or spliced.

The loop calls :attr:`Flow.handler` for the events of the flow's *source*. A flow reads only when all that it read
before is written, so that what it holds is bounded by one buffer or one pipe whatever the peers do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..eventloop.pipes import Pipe, PipePool
from ..eventloop.poller import END, ERR, HUP, IN, OUT, PRI, READ
from .workspace import Workspace

if TYPE_CHECKING:  # parts of one machine name each other
    from .flow_pair import FlowPair

WATCHED = READ | PRI  # the events of a source that is read from, in the beginning
_LAST = IN | END | HUP  # the events of a source whose last bytes have come, and which may have got its sink's end
BUFFER = 65536  # bytes that one step copies at most
_LARGE = 32768  # bytes of a read that count as bulk; a window that has not grown gives 65,483 at most, never a buffer
_BULK_AFTER = 3  # large reads in a row that make a flow splice
_SMALL = 16384  # a splice below this many bytes costs more than copying them
_REST = 16  # buffers that are still passed on after a reset
_COPY_AFTER = 8  # small splices in a row that make a flow copy again
_MORE = getattr(socket, "MSG_MORE", 0)
_AT_MARK = 0x8905  # SIOCATMARK of ioctl(2), see tcp(7); a system where it has another number says ENOTTY
_NONBLOCK = getattr(os, "SPLICE_F_NONBLOCK", 0) | getattr(os, "SPLICE_F_MOVE", 0)


class Reader(Protocol):
    """The source of a flow, or an object that reads more or less of it at a time."""

    def recv(self, size: int, /) -> bytes | memoryview:
        """Return some bytes, as a socket does."""


class Writer(Protocol):
    """The sink of a flow, or an object that sends to it in another way."""

    def send(self, data: bytes | memoryview, /) -> int:
        """Send some bytes; return how many, as a socket does."""


class Portions:
    """Reads portions of another size than it is asked for.

    :param reader: where from.
    :param size: the bytes of a portion.
    """

    __slots__ = ("_reader", "_size")

    def __init__(self, reader: Reader, size: int) -> None:
        self._reader = reader
        self._size = size

    def recv(self, size: int) -> bytes | memoryview:
        """Return a portion, or less."""
        return self._reader.recv(self._size)


class WholeSocket:
    """Reads what a Unix socket holds into memory that all flows of a thread share: by default that is less.

    Each step uses the memory again, so what it does not pass on is copied (:meth:`Flow.queue`).

    :param source: the socket.
    :param place: the memory.
    """

    __slots__ = ("_place", "_source")

    def __init__(self, source: socket.SocketType, place: memoryview) -> None:
        self._source = source
        self._place = place

    def recv(self, size: int) -> memoryview:
        """Return what it holds."""
        # A new object for each step would be memory that the C library asks of the system, and gives back, each time.
        return self._place[: self._source.recv_into(self._place)]


class UrgentByte:
    """Sends the next byte of a flow as urgent data.

    :param flow: the flow, which writes to its sink itself afterwards.
    """

    __slots__ = ("_flow",)

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    def send(self, data: bytes | memoryview) -> int:
        """Send it."""
        flow = self._flow
        sent = flow.sink.send(data, socket.MSG_OOB)
        flow.writer = flow.sink
        return sent


class Flow:
    """One direction. It ends with the EOF of its source, which it passes on to its sink.

    The flow that reads from a socket sets the interest in its events; the flow that writes to it asks its ``reverse``.
    """

    __slots__ = (
        "owner", "reverse", "work", "source", "sink", "reader", "writer", "descriptor", "mask", "reads", "handler",
        "pending", "pipe", "piped", "streak", "spliceable", "spliced", "moved", "last", "first", "ended",
    )  # fmt: skip

    reverse: Flow

    def __init__(self, owner: FlowPair, work: Workspace, source: socket.SocketType, sink: socket.SocketType) -> None:
        self.owner = owner
        self.work = work
        self.source = source
        self.sink = sink
        self.reader: Reader = source
        self.writer: Writer = sink
        self.descriptor = source.fileno()
        self.mask = -1  # not registered
        self.reads = WATCHED
        self.handler: Callable[[int, float], None] = self.copy
        self.pending: memoryview | None = None
        self.pipe: Pipe | None = None
        self.piped = 0
        self.streak = -1  # until the first bytes, so that only these cost a look at the time when they came
        self.spliceable: bool | None = None  # not known until the first bulk transfer, which few connections are
        self.spliced = 0  # bytes; while it splices, less those moved before, see spliced_bytes()
        self.moved = 0  # bytes that the sink has taken, or is about to take
        self.last = 0.0  # when it last took some, monotonic seconds
        self.first = 0.0  # when it first took some, if it has taken more since
        self.ended = 0.0  # when the source came to its end; 0.0 while it has not

    # -- the hot path ---------------------------------------------------------------------------------------------
    #
    # One read, one write, and back to the loop, which serves all other flows before the next turn. A read that does
    # not fill the buffer has drained the source; a second one would only cost a system call. Measured for 50 bytes:
    # recv and send, recv_into a shared buffer and send of a slice of it, and os.read and os.write cost the same within
    # a per cent, and so does all of it written into the loop. The sockets' own methods fail on a socket that other code
    # has closed, where its descriptor could be that of another one.

    def copy(self, event: int, now: float) -> None:
        """Copy the bytes of the source by way of this process."""
        if event != IN:
            return self.copy_to_the_end(now) if event | HUP == _LAST else self.on_other_event(event, now)
        try:
            data = self.reader.recv(BUFFER)
        except OSError as error:
            return self.source_failed(error, now)
        if not data:
            return self.end(now)
        size = len(data)
        self.moved += size  # before the sink's peer can see them, so that no record lags behind them
        self.last = now
        try:
            sent = self.writer.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.moved -= size
            return self.sink_failed(now)
        if sent != size:
            self.moved -= size - sent
            self.queue(memoryview(data)[sent:])
        elif size >= _LARGE:
            self.full(size)
        elif self.streak:
            if self.streak < 0:
                self.first = now
            elif self.owner.is_bulk:
                self.owner.set_bulk(False, now)
            self.streak = 0

    def copy_to_the_end(self, now: float) -> None:
        """Copy when the source has announced its end, so that the last bytes and the end travel in one segment."""
        try:
            data = self.reader.recv(BUFFER)
        except OSError as error:
            return self.source_failed(error, now)
        if not data:
            return self.end(now)
        more = _MORE if self.owner.passes_end_of(self) else 0
        size = len(data)
        self.moved += size
        self.last = now
        try:
            sent = self.sink.send(data, more)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.moved -= size
            return self.sink_failed(now)
        if sent != size:
            self.moved -= size - sent
            return self.queue(memoryview(data)[sent:])
        # What was sent waits for more, so this must end with an end or with more.
        try:
            data = self.reader.recv(BUFFER)
        except OSError as error:
            return self.source_failed(error, now)
        if data:
            self.queue(memoryview(data))
        else:
            self.end(now)

    def splice(self, event: int, now: float) -> None:
        """Move the bytes of the source inside the kernel."""
        if event != IN:
            return self.on_other_event(event, now)
        pipes: PipePool = self.work.pipes  # type: ignore[assignment]
        pipe = pipes.idle[-1] if pipes.idle else pipes.make()  # it stays there, unless bytes stay in it
        if pipe is None:
            self.use(self.copy)
            return self.copy(event, now)
        reader, writer, size = pipe
        try:
            size = os.splice(self.source.fileno(), writer, size, None, None, _NONBLOCK)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return self.never_splice(event, now)
            return self.source_failed(error, now)
        if not size:
            return self.end(now)
        self.moved += size
        self.last = now
        try:
            sent = os.splice(reader, self.sink.fileno(), size, None, None, _NONBLOCK)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.moved -= size
            pipes.destroy(pipes.idle.pop())
            return self.sink_failed(now)
        if sent != size:
            self.moved -= size - sent
            self.pipe, self.piped = pipes.idle.pop(), size - sent
            self.block()
        if size < _SMALL:
            self.small(now)
        elif self.streak:
            self.streak = 0
        elif not self.owner.is_bulk:
            self.owner.set_bulk(True, now)

    # -- back pressure --------------------------------------------------------------------------------------------

    def queue(self, data: memoryview) -> None:
        """Keep the bytes that the sink did not take."""
        if self.streak < 0 < self.last:
            self.first, self.streak = self.last, 0
        self.pending = data if data.readonly else memoryview(bytes(data))  # a session's memory is used again
        self.block()

    def queue_first(self, data: memoryview) -> None:
        """Take bytes that were read from the source before there was a flow."""
        self.queue(data)

    def block(self) -> None:
        """Stop reading, and wait until the sink takes more."""
        self.set_interest(max(self.mask, 0) & ~READ)
        self.reverse.set_interest(max(self.reverse.mask, 0) | OUT)

    def drain(self, now: float) -> None:
        """Write what is pending, now that the sink takes bytes again."""
        try:
            if self.pending is not None:
                sent = self.writer.send(self.pending)
                self.pending = self.pending[sent:] or None
            elif self.pipe is not None:
                sent = os.splice(self.pipe.reader, self.sink.fileno(), self.piped, flags=_NONBLOCK)
                self.piped -= sent
                if not self.piped:
                    self.work.pipes.give(self.pipe)  # type: ignore[union-attr]
                    self.pipe = None
            else:
                sent = 0
        except BlockingIOError:
            return
        except OSError:
            return self.sink_failed(now)
        if sent:
            self.moved += sent
            self.last = now
        if self.pending is None and self.pipe is None:
            self.reverse.set_interest(self.reverse.mask & ~OUT)
            if not self.ended:
                self.set_interest(max(self.mask, 0) | self.reads)

    def on_other_event(self, event: int, now: float) -> None:
        """Handle every event but "the source has bytes"."""
        if event & OUT:
            self.reverse.drain(now)
            if self.owner.is_closed:
                return
        if event & PRI and self.mask > 0 and self.mask & PRI:
            return self.on_urgent(event & ~PRI, now)
        if self.mask & IN and self.mask > 0:
            if event & END and self.handler == self.copy:
                self.copy_to_the_end(now)
            elif event & (READ | ERR | HUP):
                self.handler(IN, now)
        elif event & ERR and (number := self._take_error()):
            self.source_failed(OSError(number, os.strerror(number)), now)
        elif event & HUP:
            # Nothing can be waited for here any more, and a hang-up is reported without end.
            self.set_interest(-1)

    # -- urgent data ----------------------------------------------------------------------------------------------
    #
    # The kernel ends a read before the mark, and announces the urgent byte until a read has passed it. A read that
    # begins at the mark loses the byte unless it is to come in line, and a splice there moves nothing, or returns 0 as
    # at the end of file if the source has ended. So until the mark is passed, each step copies, and it begins here.
    #
    # A flow that does not read waits for urgent data all the same, as the kernel drops the byte when another one comes.

    def on_urgent(self, event: int, now: float) -> None:
        """See to it that urgent data comes in line, and copy some of what is before it if this flow may read now."""
        if self.source.family not in (socket.AF_INET, socket.AF_INET6):
            self.reads = READ  # what a Unix peer sends out of band may be the mark of a reset, and is no data
        else:
            with contextlib.suppress(OSError):  # it is closed, which the next read finds
                self.source.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            if self.mask & IN:
                return self.copy_to_mark(now)
        self.set_interest(self.mask & ~PRI)
        if event:
            self.on_other_event(event, now)

    def copy_to_mark(self, now: float) -> None:
        """Copy up to the mark of urgent data, or the byte there."""
        try:
            is_at_mark = any(fcntl.ioctl(self.source.fileno(), _AT_MARK, bytes(4)))
        except (OSError, ValueError):
            is_at_mark = False
        if self.handler == self.splice:
            self.use(self.copy)
        if is_at_mark and self.owner.takes_urgent(self):
            self.copy_urgent(now)
        else:
            self.copy(IN, now)

    def copy_urgent(self, now: float) -> None:
        """Copy one byte, as urgent data."""
        reader = self.reader
        self.reader, self.writer = Portions(reader, 1), UrgentByte(self)
        self.copy(IN, now)
        if self.pending is None:
            self.writer = self.sink
        if not self.owner.is_closed:
            self.reader = reader

    def _take_error(self) -> int:
        """Return the error number of the source if its bytes before that are lost; else 0.

        A reset of a Unix socket stands behind the bytes that came before it, which are here and are read first.
        """
        if self.source.family == socket.AF_UNIX:
            return 0
        return self.source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def set_interest(self, mask: int) -> None:
        """Wait for these events of the source; −1 takes it out of the loop."""
        if mask == self.mask:
            return
        loop = self.work.loop
        if self.mask < 0:
            if self.source.fileno() == self.descriptor:
                loop.watch(self.descriptor, mask, self.handler)
        elif loop.handlers.get(self.descriptor) is not self.handler:  # the number is another socket's by now
            mask = -1
        elif mask < 0:
            loop.forget(self.descriptor)
        else:
            poller = loop.poller_of(self.descriptor) if loop.bulk else loop.poller
            poller.modify(self.descriptor, mask)
        self.mask = mask

    def set_bulk(self, is_bulk: bool) -> None:
        """Handle the events of the source with those of bulk transfers, or with all others again."""
        loop = self.work.loop
        if loop.handlers.get(self.descriptor) is self.handler:
            loop.set_bulk(self.descriptor, self.mask, is_bulk)

    def use(self, handler: Callable[[int, float], None]) -> None:
        """Use another handler from now on."""
        handlers = self.work.loop.handlers
        if self.mask >= 0 and handlers.get(self.descriptor) is self.handler:
            handlers[self.descriptor] = handler
        # In this order, so that another thread that looks in between finds too few spliced bytes, never too many.
        if handler == self.splice:
            self.spliced -= self.moved
        has_spliced, self.handler = self.handler == self.splice, handler
        if has_spliced:
            self.spliced += self.moved
        self.streak = 0

    def full(self, size: int) -> None:
        """Count a large read of so many bytes: several in a row are a bulk transfer."""
        if self.streak < 0:
            self.first, self.streak = self.last, 0
        self.streak += 1
        if self.streak >= _BULK_AFTER and self.can_splice():
            self.use(self.splice)
        elif self.streak >= _BULK_AFTER and size == BUFFER and self.source.family == socket.AF_UNIX:
            self.read_whole()
        if self.streak > _BULK_AFTER and not self.owner.is_bulk:
            self.owner.set_bulk(True, self.last)

    def read_whole(self) -> None:
        """Read all that a Unix socket holds in one step from now on."""
        # Its sender is woken when three quarters are read. Emptied in one step, it is filled again during the next.
        self.reader = WholeSocket(self.source, self.work.buffer)

    def can_splice(self) -> bool:
        """Return whether the bytes of the source can be spliced, and this pays."""
        if self.spliceable is None:
            # Out of a Unix socket, copying costs up to a third less than splicing (measured, pieces of 8 KiB to 1 MiB).
            self.spliceable = self.work.pipes is not None and self.source.family != socket.AF_UNIX
        return self.spliceable

    def small(self, now: float) -> None:
        """Count a splice that moved little: several in a row are no bulk transfer."""
        if self.owner.is_bulk:
            self.owner.set_bulk(False, now)
        self.streak += 1
        if self.streak >= _COPY_AFTER:
            self.use(self.copy)

    def never_splice(self, event: int, now: float) -> None:
        """Copy from now on: these sockets cannot be spliced."""
        self.spliceable = False
        self.use(self.copy)
        self.copy(event, now)

    def end(self, now: float) -> None:
        """Pass on the EOF of the source, which ends this direction only."""
        self.ended = now
        self.owner.flow_ended(self, now)
        if not self.owner.is_closed and self.mask >= 0:
            self.set_interest(self.mask & ~WATCHED)

    def source_failed(self, error: OSError, now: float) -> None:
        """Take an error of reading."""
        if not isinstance(error, BlockingIOError):
            self.owner.on_socket_error(self.source, now)

    def sink_failed(self, now: float) -> None:
        """Take an error of writing; bytes that the sink's peer sent before are still passed on, as by the kernel."""
        self.reverse.pass_on_rest()
        self.owner.on_socket_error(self.sink, now)

    def pass_on_rest(self) -> None:
        """Pass on the bytes that have arrived, without waiting."""
        try:
            for _ in range(_REST):
                if self.pending is not None or self.pipe is not None or self.ended:
                    return
                data = self.reader.recv(BUFFER)
                if not data:
                    return
                sent = self.writer.send(data)
                self.moved += sent
                if sent != len(data):
                    return
        except OSError:
            pass  # either end is gone: nothing more can be passed on

    def discard(self, event: int, now: float) -> None:
        """Read and drop, until EOF, what a peer still sends to a stream that has ended."""
        try:
            if self.reader.recv(BUFFER):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.owner.close("done", now)

    def drop(self) -> None:
        """Forget the bytes that the sink did not take."""
        if self.pipe is not None:
            self.work.pipes.destroy(self.pipe)  # type: ignore[union-attr]
        self.pending = self.pipe = None
        self.piped = 0
        self.writer = self.sink

    def release(self, own: bool) -> None:
        """Leave the loop, drop what is pending, and forget what refers back to this flow, so that it is freed at once.

        :param own: whether the source was made by the engine, so that no other code can hold a copy of it.
        """
        if self.mask >= 0:
            self.work.loop.leave(self.descriptor, self.handler, own)
        if self.pending is not None or self.pipe is not None:
            self.drop()
        self.reverse = None  # type: ignore[assignment]
        del self.handler

    def count(self) -> int:
        """Return the bytes that were moved; safe from any thread."""
        return self.moved

    def spliced_bytes(self) -> int:
        """Return how many of them were spliced; safe from any thread until :meth:`release`."""
        return max(0, self.spliced + self.moved if self.handler == self.splice else self.spliced)

    def crashed(self, now: float) -> None:
        """End the connection after a bug in a handler."""
        self.owner.close("factory_error", now)
