"""The channels of one SSH connection (RFC 4254, section 5)."""

from __future__ import annotations

import struct
from collections.abc import Callable

from ...address import TCPAddress
from ...errors import CarrierError
from ...hops import Command
from ...stream import Stream
from ..connection import Place
from .channel import WINDOW, Channel
from .messages import (
    ADJUST,
    CLOSE,
    CONFIRMED,
    DATA,
    END,
    EXTENDED,
    OPEN,
    REFUSED,
    REQUEST,
    REQUEST_GRANTED,
    REQUEST_REFUSED,
    guarded,
    text,
)
from .openings import Opening
from .sessions import CommandChannel
from .transport import Transport

__all__ = ["Channels"]

GROWTH = 64 << 20  # bytes by which all windows of a connection may grow
PACKET = 64 << 10  # bytes in a packet that we take

_UNSENT = 1 << 20  # bytes that wait for the connection before no more is read
_LATER = 20_000  # messages that wait for new keys
_ZERO = bytes(4)


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
        self.live: set[Channel] = set()  # those with a descriptor
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
            (CONFIRMED, self._on_confirmed), (REFUSED, self._on_refused), (ADJUST, self._on_adjust),
            (DATA, self._on_data), (EXTENDED, self._on_extended), (END, self._on_end), (CLOSE, self._on_close),
            (REQUEST, self._on_request), (REQUEST_GRANTED, self._on_granted), (REQUEST_REFUSED, self._on_denied),
        ):  # fmt: skip
            transport.handle(kind, handler)

    # -- sending --------------------------------------------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        """Send a message, when the keys allow it."""
        if self._transport.sendable:
            self.packetizer.send(payload)
        elif len(self._later) < _LATER:
            self._later.append(payload)
        else:
            self.wire.end(CarrierError("the server asks too much while keys are exchanged"))

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
                guarded(idle)

    def when_idle(self, call: Callable[[], object]) -> None:
        """Have ``call`` called once, when no stream is open."""
        if self._streams:
            self._idle = call
        else:
            call()

    def open(self, opening: Opening, place: Place) -> None:
        """Ask the server for a channel (RFC 4254, sections 6.1 and 7.2; OpenSSH's PROTOCOL, section 2.4)."""
        number = self.number(opening)
        if isinstance(place, Command):
            kind, rest = b"session", b""
        elif isinstance(place, TCPAddress):
            kind, rest = b"direct-tcpip", text(place.host) + struct.pack(">I", place.port) + text("127.0.0.1") + _ZERO
        else:
            kind, rest = b"direct-streamlocal@openssh.com", text(place.path) + text("") + _ZERO
        self.send(struct.pack(f">BI{len(kind)}sIII", OPEN, len(kind), kind, number, WINDOW, PACKET) + rest)

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
        self.send(struct.pack(">BIIII", CONFIRMED, remote, number, WINDOW, PACKET))
        return channel.hand_over()

    def _on_confirmed(self, body: memoryview) -> None:
        number, remote, credit, packet = struct.unpack_from(">IIII", body)
        opening = self._table.get(number)
        if not isinstance(opening, Opening):
            return
        if opening.is_wanted():
            try:
                return self._take(opening, number, remote, credit, packet)
            except OSError as error:
                opening.tell(error)
        # Nobody wants it any more; the number is free when the server has closed it, too.
        self._table[number] = None
        self.send(struct.pack(">BI", CLOSE, remote))

    def _take(self, opening: Opening, number: int, remote: int, credit: int, packet: int) -> None:
        """Take a channel that the server has opened for us.

        :raises OSError: if there are no descriptors left.
        """
        place = opening.place
        if isinstance(place, Command):
            session = CommandChannel(self, number, remote, credit, packet, opening)
            self._table[number] = session
            self.one_more()
            session.ask(place.words)
        else:
            channel = Channel(self, number, remote, credit, packet, opening.target)
            self._table[number] = channel
            self.one_more()
            opening.tell(channel.hand_over())

    def _on_refused(self, body: memoryview) -> None:
        number, code, length = struct.unpack_from(">III", body)
        opening = self._table.get(number)
        if isinstance(opening, Opening):
            self.free(number)
            opening.refused(code, bytes(body[12 : 12 + length]).decode("utf-8", "replace"))

    # -- messages for channels ------------------------------------------------------------------------------------

    def _find(self, body: memoryview) -> Channel | None:
        entry = self._table.get(*struct.unpack_from(">I", body))
        return entry if isinstance(entry, Channel) else None

    def _on_data(self, body: memoryview) -> None:
        number, size = struct.unpack_from(">II", body)
        data = body[8 : 8 + size]
        if size > len(data):
            raise ValueError("data that are longer than their message")
        channel = self._table.get(number)
        if isinstance(channel, Channel) and size:
            channel.receive(data)

    def _on_extended(self, body: memoryview) -> None:
        channel = self._find(body)
        _, kind, _ = struct.unpack_from(">III", body)
        if channel is not None:
            channel.extended(kind, body[12:])

    def _on_adjust(self, body: memoryview) -> None:
        channel = self._find(body)
        if channel is not None:
            channel.adjust(*struct.unpack_from(">I", body, 4))

    def _on_end(self, body: memoryview) -> None:
        channel = self._find(body)
        if channel is not None:
            channel.end()

    def _on_close(self, body: memoryview) -> None:
        (number,) = struct.unpack_from(">I", body)
        channel = self._table.get(number, self)
        if isinstance(channel, Channel):
            channel.close()
        elif channel is None:
            self.free(number)

    def _on_request(self, body: memoryview) -> None:
        channel = self._find(body)
        (length,) = struct.unpack_from(">I", body, 4)
        end = 8 + length
        wants_answer = bool(body[end])
        if channel is not None:
            channel.requested(bytes(body[8:end]), wants_answer, body[end + 1 :])

    def _on_granted(self, body: memoryview) -> None:
        channel = self._find(body)
        if channel is not None:
            channel.granted()

    def _on_denied(self, body: memoryview) -> None:
        channel = self._find(body)
        if channel is not None:
            channel.denied()

    # -- the end --------------------------------------------------------------------------------------------------

    def leave(self, error: OSError, gone: Callable[[], object]) -> None:
        """Cut the streams that are held, let the rest of the others go out, and call ``gone`` when it has."""
        before, self._idle = self._idle, None
        self._end_openings(error)
        for channel in [one for one in self.live if not one.look()]:
            channel.fail(error)

        def both() -> None:
            if before is not None:
                guarded(before)
            gone()

        self.when_idle(both)

    def fail(self, error: OSError) -> None:
        """End every stream, at once: the connection has ended."""
        self._end_openings(error)
        for channel in list(self.live):
            channel.fail(error)
        self._streams = 1
        self.one_less()

    def _end_openings(self, error: OSError) -> None:
        self.ended = error
        for entry in list(self._table.values()):
            if isinstance(entry, Opening):
                entry.tell(error)

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        for channel in self.live:
            channel.abandon()
