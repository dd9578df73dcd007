"""SSH channels as kernel sockets (RFC 4254, section 5): one end of a socketpair for the holder, the other for us.

Everything here runs in the transport's thread, but for what says otherwise. Nothing blocks: what the connection does
not take waits in the socketpairs, what a holder does not take is bounded by the channel's window.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from ...address import TCPAddress
from ...errors import RelayError
from ...loop import Timer
from ...poller import ERR, HUP, IN, OUT
from ...pump import Watch
from ...stream import Stream
from ..connection import Place
from .openings import Opening
from .packets import DATA, PIECE, SLOTS, text
from .transport import Transport

__all__ = ["Channel", "ChannelStream", "Channels"]

logger = logging.getLogger("relay.ssh")

WINDOW = 2 << 20  # bytes that the server may send before a holder has taken them; what OpenSSH has, too
LARGEST = 16 << 20  # bytes, for a channel whose holder keeps up: what 1 Gbit/s over 100 ms needs
GROWTH = 64 << 20  # bytes by which all windows of a connection may grow
PACKET = 64 << 10  # bytes in a packet that we take

_OPEN, _CONFIRMED, _REFUSED, _ADJUST, _EXTENDED, _EOF, _CLOSE, _REQUEST, _FAILED = 90, 91, 92, 93, 95, 96, 97, 98, 100
_FULL = SLOTS * PIECE
_UNSENT = 1 << 20  # bytes that wait for the connection before no more is read
_BUFFERED = 64  # packets that are gathered for one channel
_BETWEEN = 256 << 10  # bytes on their way to a holder; Linux doubles it
_PAIR = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)
_LINGER = 60.0  # seconds without progress until a channel whose holder is gone is given up
_ZERO = bytes(4)
_CREDIT = 0xFFFFFFFF  # bytes; RFC 4254, section 5.2


class ChannelStream(Stream):
    """A stream whose socket is one end of a socketpair; an SSH channel moves the bytes of the other one."""

    __slots__ = ("_channel",)

    def __init__(self, socket: socket.socket, channel: Channel) -> None:
        super().__init__(socket, target=channel.target, failure=lambda: channel.error)
        self._channel = channel

    def reset(self) -> None:
        """Close without regard for what is under way. SSH has no reset: the far end sees an end of file. Idempotent."""
        self._channel.cut = True  # before it can see the end
        self.close()


class Channel:
    """One channel that is open, and our end of its socketpair.

    :param channels: all of the connection.
    :param number: ours.
    :param remote: the server's number.
    :param credit: bytes that the server takes.
    :param packet: bytes that it takes in one packet.
    :param target: its name, in errors and records.
    :raises OSError: if there are no descriptors left.
    """

    __slots__ = (
        "_batch", "_channels", "_counted", "_credit", "_deaf", "_got_close", "_got_end", "_inner", "_left", "_mark",
        "_moved", "_number", "_packet", "_pending", "_receive", "_remote", "_scatter", "_sent_close", "_sent_end",
        "_steady", "_taken", "_timer", "_told_end", "_watch", "_window", "cut", "error", "stream", "target",
    )  # fmt: skip

    def __init__(self, channels: Channels, number: int, remote: int, credit: int, packet: int, target: str) -> None:
        self.target = target
        self.error: OSError | None = None
        self.cut = False
        self._channels = channels
        self._number, self._remote = number, remote
        self._credit, self._packet = credit, max(1, min(packet, PIECE))
        self._window = self._left = WINDOW
        self._taken = self._steady = self._moved = self._mark = 0
        self._batch: list[memoryview] = []  # what has come since the last wait
        self._pending = bytearray()  # what the holder has not taken yet
        self._got_end = self._got_close = self._sent_end = self._sent_close = self._told_end = self._deaf = False
        self._counted = True
        self._scatter = False
        inner, theirs = socket.socketpair(type=_PAIR)
        for end in inner, theirs:
            if end.gettimeout() != 0:
                end.setblocking(False)
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BETWEEN)
        self._inner: socket.socket | None = inner
        self._receive = inner.recv_into
        self.stream = ChannelStream(theirs, self)
        self._timer = Timer(channels.loop.timers, self._expired)
        self._watch = Watch(inner, channels.loop, self._on_event)
        self._watch.want(IN if credit else 0)

    # -- from the server ------------------------------------------------------------------------------------------

    def receive(self, data: memoryview) -> None:
        """Gather what has come, to be passed on before the next wait."""
        if self._sent_close or self._got_end:
            return
        self._left -= len(data)
        if self._left < 0:
            return self.fail(self._channels.broken(self.target, "sent more than the window allows"))
        if not self._batch:
            self._channels.touched.append(self)
        self._batch.append(data)
        if len(self._batch) >= _BUFFERED:
            self.deliver()

    def skip(self, size: int) -> None:
        """Take no notice of data that are not for the holder (standard error), but of their size."""
        self._left -= size
        self._passed_on(size)

    def deliver(self) -> None:
        """Pass on what has come, as far as the holder takes it."""
        batch, self._batch = self._batch, []
        if self._deaf or self._inner is None:
            return self._passed_on(sum(map(len, batch)))
        if self._pending:
            return self._pending.extend(b"".join(batch))
        try:
            sent = self._inner.sendmsg(batch)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._deaf = True  # its end is closed: there will be a hang-up
            return None
        for place, piece in enumerate(batch):
            if sent < len(piece):
                self._pending.extend(piece[sent:])
                self._pending.extend(b"".join(batch[place + 1 :]))
                self._passed_on(sum(map(len, batch[:place])) + sent)
                return self.settle()
            sent -= len(piece)
        return self._passed_on(sum(map(len, batch)))

    def _deliver_pending(self) -> None:
        assert self._inner is not None
        try:
            with memoryview(self._pending) as rest:
                sent = self._inner.send(rest)
        except BlockingIOError:
            return
        except OSError:
            self._deaf = True
            self._pending.clear()
            return
        del self._pending[:sent]
        self._passed_on(sent)

    def _passed_on(self, size: int) -> None:
        """Let the server send as much again; more, if the holder keeps up."""
        self._moved += size
        self._taken += size
        if self._taken < self._window >> 3 or self._got_end or self._sent_close:
            return
        more = self._taken + self._growth()
        self._left += more
        self._taken = 0
        self._channels.send(struct.pack(">BII", _ADJUST, self._remote, more))

    def _growth(self) -> int:
        self._steady = 0 if self._pending else self._steady + self._taken
        if self._steady < self._window >> 1:
            return 0
        self._steady = 0
        more = min(self._window, LARGEST - self._window, self._channels.growth)
        self._channels.growth -= more
        self._window += more
        return more

    def adjust(self, more: int) -> None:
        """The server takes more bytes."""
        was, self._credit = self._credit, min(self._credit + more, _CREDIT)
        if not was:
            self.settle()

    def end(self) -> None:
        """The server has ended its direction."""
        self.deliver()
        self._got_end = True
        self.settle()

    def close(self) -> None:
        """The server has closed the channel; its number is free again once we have done so, too."""
        self.deliver()
        self._got_end = self._got_close = True
        self._send_close()
        self._channels.free(self._number)
        if self._inner is None:
            self._over()
        else:
            self.settle()

    def answer(self) -> None:
        """Refuse a request: there is none that concerns us (RFC 4254, section 5.4)."""
        if not self._sent_close:
            self._channels.send(struct.pack(">BI", _FAILED, self._remote))

    # -- from the holder ------------------------------------------------------------------------------------------

    def _on_event(self, event: int, now: float) -> None:
        if event & HUP and not self._watch.hung:
            self._watch.hung = self._deaf = True
            self._pending.clear()
            self._timer.start(now + _LINGER, now)
        if self.cut:
            return self._leave()
        if event & OUT and self._pending:
            self._deliver_pending()
        if event & (IN | HUP | ERR) and self._watch.mask & IN and self._take() and event == IN:
            return None
        return self.settle()

    def _take(self) -> bool:
        """Send what the holder has sent, or its end.

        :returns: whether there is nothing more to look at.
        """
        channels = self._channels
        if channels.holds_back():
            return False
        packetizer = channels.packetizer
        try:
            if self._scatter and self._credit >= _FULL:
                size = self._inner.recvmsg_into(packetizer.places)[0]  # type: ignore[union-attr]
            else:
                size = self._receive(packetizer.places[0], min(self._credit, self._packet))
        except BlockingIOError:
            return True
        except OSError:
            size = 0  # it was closed before all was read
        if not size:
            self._sent_end = True
            channels.send(struct.pack(">BI", _EOF, self._remote))
            return False
        self._credit -= size
        self._moved += size
        self._scatter = size >= PIECE
        packetizer.send_data(self._remote, size)
        return self._credit > 0

    def settle(self) -> None:
        """Pass ends on, and wait for what can be done next."""
        if self._inner is None:
            return
        gone = self._watch.hung
        if self._got_end and not self._pending and not self._told_end:
            self._told_end = True
            _end_output(self._inner)
        if self.cut or (self._told_end and (self._got_close or self._sent_end)) or (gone and self._sent_end):
            return self._leave()
        wanted = self._credit > 0 and not self._sent_end and not self._got_close
        if wanted and self._channels.is_held():
            self._channels.held[self] = None
            wanted = False
        self._watch.want((IN if wanted else 0) | (OUT if self._pending else 0))

    # -- its end --------------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Whether the holder is gone, without waiting for the event."""
        if self._inner is None:
            return True
        poller = select.poll()
        poller.register(self._inner, 0)
        return bool(poller.poll(0))

    def fail(self, error: OSError) -> None:
        """End it by a failure, which the holder can ask for."""
        self.error = self.error or error
        self.cut = True
        self._batch.clear()
        self._leave()

    def _leave(self) -> None:
        """Have nothing more to do with the holder."""
        self._send_close()
        inner, self._inner = self._inner, None
        if inner is not None:
            self._watch.end()
            if self.error is None:
                _empty(inner)
            self._channels.loop.discard(inner)
            self._pending.clear()
            self._channels.growth += self._window - WINDOW
            self._channels.held.pop(self, None)
        if self._got_close or self.cut:
            self._over()
        else:
            now = time.monotonic()
            self._timer.start(now + _LINGER, now)  # for the server's answer

    def _send_close(self) -> None:
        """Once, and nothing after it: OpenSSH ends the whole connection for that."""
        if not self._sent_close:
            self._sent_close = self._sent_end = True
            self._channels.send(struct.pack(">BI", _CLOSE, self._remote))

    def _over(self) -> None:
        self._timer.stop()
        if self._counted:
            self._counted = False
            self._channels.one_less()

    def _expired(self, now: float) -> None:
        if self._inner is None:
            return self._over()
        if self._moved == self._mark:
            self.cut = True
            return self._leave()
        self._mark = self._moved
        self._timer.start(now + _LINGER, now)

    def abandon(self) -> None:
        """In a forked child: close the descriptor and nothing else."""
        if self._inner is not None:
            self._inner.close()

    def crashed(self, now: float) -> None:
        """A bug in a handler: end it."""
        self.fail(OSError(errno.EIO, "a bug in relay; the log has it"))


class Channels:
    """All channels of one connection.

    :param transport: the connection.
    :param name: the server's name, in errors.
    """

    def __init__(self, transport: Transport, name: str) -> None:
        self.name = name
        self.packetizer, self.wire, self.loop = transport.packetizer, transport.wire, transport.wire.loop
        self.touched: list[Channel] = []  # those with something gathered
        self.held: dict[Channel, None] = {}  # those whose holders wait for the connection
        self.growth = GROWTH
        self.ended: OSError | None = None  # why no channel can be opened any more
        self._transport = transport
        self._table: dict[int, Channel | Opening | None] = {}
        self._free: list[int] = []
        self._streams = 0
        self._idle: Callable[[], object] | None = None
        self._later: list[bytes] = []  # messages that have to wait for the new keys
        self.packetizer.deliver = self._deliver
        self.wire.drained = transport.resumed = self._resume
        for kind, handler in (
            (_CONFIRMED, self._on_confirmed), (_REFUSED, self._on_refused), (_ADJUST, self._on_adjust),
            (DATA, self._on_data), (_EXTENDED, self._on_extended), (_EOF, self._on_end), (_CLOSE, self._on_close),
            (_REQUEST, self._on_request), (99, _ignore), (_FAILED, _ignore),
        ):  # fmt: skip
            transport.handle(kind, handler)

    # -- sending --------------------------------------------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        """Send a message, when the keys allow it."""
        if self._transport.sendable:
            self.packetizer.send(payload)
        elif self.ended is None:
            self._later.append(payload)

    def is_held(self) -> bool:
        """Whether the connection takes no data for now."""
        return self.wire.clogged or not self._transport.sendable

    def holds_back(self) -> bool:
        """Whether no more is to be read from the holders."""
        if self.wire.unsent > _UNSENT:
            self.wire.flush()
        return self.wire.clogged or not self._transport.sendable

    def _resume(self) -> None:
        later, self._later = self._later, []
        for payload in later:
            self.send(payload)
        held, self.held = self.held, {}
        for channel in held:
            channel.settle()

    def _deliver(self) -> None:
        touched = self.touched
        while touched:
            touched.pop().deliver()

    # -- opening --------------------------------------------------------------------------------------------------

    def number(self, entry: Channel | Opening | None) -> int:
        """A number that is free, taken for ``entry``."""
        number = self._free.pop() if self._free else len(self._table)
        self._table[number] = entry
        return number

    def free(self, number: int) -> None:
        """Let a number be used again."""
        if self._table.pop(number, self) is not self:
            self._free.append(number)

    def one_more(self) -> None:
        """A stream is being opened."""
        self._streams += 1

    def one_less(self) -> None:
        """A stream is over, or will not be."""
        self._streams -= 1
        if not self._streams:
            idle, self._idle = self._idle, None
            if idle is not None:
                idle()

    def when_idle(self, call: Callable[[], object]) -> None:
        """Have ``call`` called once, when no stream is open."""
        if self._streams:
            self._idle = call
        else:
            call()

    def open(self, opening: Opening, place: Place) -> None:
        """Ask the server for a channel to a place (RFC 4254, section 7.2; OpenSSH's PROTOCOL, section 2.4)."""
        number = self.number(opening)
        if isinstance(place, TCPAddress):
            kind, rest = b"direct-tcpip", text(place.host) + struct.pack(">I", place.port) + text("127.0.0.1") + _ZERO
        else:
            kind, rest = b"direct-streamlocal@openssh.com", text(place.path) + text("") + _ZERO
        self.send(struct.pack(f">BI{len(kind)}sIII", _OPEN, len(kind), kind, number, WINDOW, PACKET) + rest)

    def accept(self, remote: int, credit: int, packet: int, target: str) -> Stream:
        """Take a channel that the server opens (RFC 4254, section 5.1).

        :raises OSError: if there are no descriptors left.
        """
        number = self.number(None)
        try:
            channel = Channel(self, number, remote, credit, packet, target)
        except OSError:
            self.free(number)
            raise
        self._table[number] = channel
        self.one_more()
        self.send(struct.pack(">BIIII", _CONFIRMED, remote, number, WINDOW, PACKET))
        return channel.stream

    def _on_confirmed(self, buffer: memoryview, at: int, end: int) -> None:
        number, remote, credit, packet = struct.unpack_from(">IIII", buffer, at)
        opening = self._table.get(number)
        if not isinstance(opening, Opening):
            return
        if opening.is_wanted():
            try:
                channel = Channel(self, number, remote, credit, packet, opening.target)
            except OSError as error:
                opening.tell(error)
            else:
                self._table[number] = channel
                self.one_more()
                opening.tell(channel.stream)
                return
        # Nobody wants it any more; the number is free when the server has closed it, too.
        self._table[number] = None
        self.send(struct.pack(">BI", _CLOSE, remote))

    def _on_refused(self, buffer: memoryview, at: int, end: int) -> None:
        number, code, length = struct.unpack_from(">III", buffer, at)
        opening = self._table.get(number)
        if isinstance(opening, Opening):
            self.free(number)
            opening.refused(code, bytes(buffer[at + 12 : min(at + 12 + length, end)]).decode("utf-8", "replace"))

    # -- messages for channels ------------------------------------------------------------------------------------

    def _find(self, buffer: memoryview, at: int) -> Channel | None:
        entry = self._table.get(*struct.unpack_from(">I", buffer, at))
        return entry if isinstance(entry, Channel) else None

    def _on_data(self, buffer: memoryview, at: int, end: int) -> None:
        number, size = struct.unpack_from(">II", buffer, at)
        if size > end - at - 8:
            raise ValueError("data that are longer than their message")
        channel = self._table.get(number)
        if channel.__class__ is Channel and size:
            channel.receive(buffer[at + 8 : at + 8 + size])

    def _on_extended(self, buffer: memoryview, at: int, end: int) -> None:
        channel = self._find(buffer, at)
        if channel is not None:
            channel.skip(min(*struct.unpack_from(">I", buffer, at + 8), end - at))

    def _on_adjust(self, buffer: memoryview, at: int, end: int) -> None:
        channel = self._find(buffer, at)
        if channel is not None:
            channel.adjust(*struct.unpack_from(">I", buffer, at + 4))

    def _on_end(self, buffer: memoryview, at: int, end: int) -> None:
        channel = self._find(buffer, at)
        if channel is not None:
            channel.end()

    def _on_close(self, buffer: memoryview, at: int, end: int) -> None:
        (number,) = struct.unpack_from(">I", buffer, at)
        channel = self._table.get(number, self)
        if isinstance(channel, Channel):
            channel.close()
        elif channel is None:
            self.free(number)

    def _on_request(self, buffer: memoryview, at: int, end: int) -> None:
        channel = self._find(buffer, at)
        (length,) = struct.unpack_from(">I", buffer, at + 4)
        wants_reply = at + 8 + length
        if channel is not None and wants_reply < end and buffer[wants_reply]:
            channel.answer()

    # -- the end --------------------------------------------------------------------------------------------------

    def broken(self, target: str, how: str) -> OSError:
        """The error of a channel that the server has broken."""
        return RelayError(f"{target}: {self.name} {how}")

    def leave(self, error: OSError) -> None:
        """Cut the streams that are held, and let the rest of the others go out."""
        self.ended = error
        for entry in list(self._table.values()):
            if isinstance(entry, Opening):
                entry.tell(error)
            elif entry is not None and not entry.look():
                entry.fail(error)

    def fail(self, error: OSError) -> None:
        """End every stream, at once: the connection has ended."""
        self.ended = error
        self._later.clear()
        for entry in list(self._table.values()):
            if isinstance(entry, Opening):
                entry.tell(error)
            elif entry is not None:
                entry.fail(error)

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        for entry in list(self._table.values()):
            if isinstance(entry, Channel):
                entry.abandon()


def _end_output(inner: socket.socket) -> None:
    try:
        inner.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the holder's end is closed


def _empty(inner: socket.socket) -> None:
    """Drop what the holder has sent in vain: a close with bytes unread would look like a reset to it."""
    try:
        inner.shutdown(socket.SHUT_RD)
        while inner.recv(1 << 16):
            pass
    except OSError:
        pass


def _ignore(buffer: memoryview, at: int, end: int) -> Any:
    pass
