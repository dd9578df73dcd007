"""The channels of one SSH connection (RFC 4254, section 5)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from ....errors import CarrierError
from .messages import (
    ADJUST,
    CLOSE,
    CONFIRMED,
    DATA,
    END,
    EXTENDED,
    REFUSED,
    REQUEST,
    REQUEST_GRANTED,
    REQUEST_REFUSED,
    guarded,
)
from .transport import Transport

__all__ = ["Channel", "Channels", "Opening"]

GROWTH = 64 << 20  # bytes by which all windows of a connection may grow

_UNSENT = 1 << 20  # bytes that wait for the connection before no more is read
_LATER = 20_000  # messages that wait for new keys


class Channel(Protocol):
    """An open channel, as the mux sees it: what the server sends for it, and its end."""

    def __hash__(self) -> int:
        """Channels are members of sets."""

    def receive(self, data: memoryview, /) -> None:
        """Data; the memory is valid until the next wait."""

    def extended(self, kind: int, data: memoryview, /) -> None:
        """Data of another kind (RFC 4254, section 5.2)."""

    def adjust(self, size: int, /) -> None:
        """The server accepts so many bytes more."""

    def end(self) -> None:
        """EOF."""

    def close(self) -> None:
        """The server has closed it."""

    def requested(self, kind: bytes, wants_answer: bool, rest: memoryview, /) -> None:
        """A request of the server."""

    def granted(self) -> None:
        """The server has granted a request."""

    def denied(self) -> None:
        """The server has rejected a request."""

    def deliver(self) -> None:
        """Pass on what was gathered."""

    def settle(self) -> None:
        """Go on: the connection accepts data again."""

    def look(self) -> bool:
        """Whether its holder has closed it."""

    def fail(self, error: OSError, /) -> None:
        """End it by a failure."""

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""


class Opening(Protocol):
    """A channel that was asked for, as the mux sees it."""

    def is_wanted(self) -> bool:
        """Whether somebody still waits for it."""

    def confirmed(self, number: int, remote: int, credit: int, packet: int, /) -> None:
        """The server has opened it.

        :raises OSError: if there are no descriptors left.
        """

    def refused(self, code: int, text: str, /) -> None:
        """The server does not open it."""

    def tell(self, outcome: OSError, /) -> None:
        """It has failed."""


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
        # A number is in one of these three.
        self._channels: dict[int, Channel] = {}  # open
        self._openings: dict[int, Opening] = {}  # asked for
        self._reserved: set[int] = set()  # about to be opened by the server, or to be closed by it
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

    def number(self, opening: Opening | None = None) -> int:
        """Take a number that is free, for a channel that is asked for, or for one that the server opens."""
        number = self._free.pop() if self._free else len(self)
        if opening is None:
            self._reserved.add(number)
        else:
            self._openings[number] = opening
        return number

    def put(self, number: int, channel: Channel) -> None:
        """A channel is open; messages for the number are its own from now on."""
        self._openings.pop(number, None)
        self._reserved.discard(number)
        self._channels[number] = channel
        self.one_more()

    def free(self, number: int) -> None:
        """Let a number be used again."""
        in_use = len(self)
        self._channels.pop(number, None)
        self._openings.pop(number, None)
        self._reserved.discard(number)
        if len(self) < in_use:
            self._free.append(number)

    def __len__(self) -> int:
        """How many numbers are in use."""
        return len(self._channels) + len(self._openings) + len(self._reserved)

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

    def _on_confirmed(self, body: memoryview) -> None:
        number, remote, credit, packet = struct.unpack_from(">IIII", body)
        opening = self._openings.get(number)
        if opening is None:
            return
        if opening.is_wanted():
            try:
                return opening.confirmed(number, remote, credit, packet)
            except OSError as error:
                opening.tell(error)
        # Nobody wants it any more; the number is free when the server has closed it, too.
        del self._openings[number]
        self._reserved.add(number)
        self.send(struct.pack(">BI", CLOSE, remote))

    def _on_refused(self, body: memoryview) -> None:
        number, code, length = struct.unpack_from(">III", body)
        opening = self._openings.get(number)
        if opening is not None:
            self.free(number)
            opening.refused(code, bytes(body[12 : 12 + length]).decode("utf-8", "replace"))

    # -- messages for channels ------------------------------------------------------------------------------------

    def _find(self, body: memoryview) -> Channel | None:
        (number,) = struct.unpack_from(">I", body)
        return self._channels.get(number)

    def _on_data(self, body: memoryview) -> None:
        number, size = struct.unpack_from(">II", body)
        data = body[8 : 8 + size]
        if size > len(data):
            raise ValueError("data that are longer than their message")
        channel = self._channels.get(number)
        if channel is not None and size:
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
        channel = self._channels.get(number)
        if channel is not None:
            channel.close()
        elif number in self._reserved:
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
        for opening in list(self._openings.values()):
            opening.tell(error)

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        for channel in self.live:
            channel.abandon()
