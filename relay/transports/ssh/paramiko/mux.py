"""The channels and the global requests of one SSH connection (RFC 4254, sections 4 and 5).

A :class:`Mux` has the numbers of channels, opens them and dispatches messages to them.
"""

from __future__ import annotations

import math
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ....errors import CarrierError
from .messages import (
    ADJUST,
    ASK,
    CLOSE,
    CONFIRMED,
    DATA,
    DENIED,
    END,
    EXTENDED,
    GRANTED,
    NOTHING,
    REFUSED,
    REQUEST,
    REQUEST_GRANTED,
    REQUEST_REFUSED,
    guarded,
    text,
)
from .transport import Transport

if TYPE_CHECKING:
    from .channel import Channel
    from .opening import Opening

GROWTH = 64 << 20  # bytes by which all windows of a connection may grow

_UNSENT = 1 << 20  # bytes that wait for the connection before no more is read
_LATER = 20_000  # messages that wait for new keys

Answered = Callable[["bytes | None"], object]
"""Called with the data of the reply, or with ``None`` if the request has failed or the connection has ended."""


class Mux:
    """The channels of one connection by their numbers: opens and closes them, and dispatches messages to them.

    :param transport: the connection.
    :param name: the server's name, in errors.
    """

    def __init__(self, transport: Transport, name: str) -> None:
        self.name = name
        self.packetizer, self.wire, self.loop = transport.packetizer, transport.wire, transport.wire.loop
        self.touched: list[Channel] = []  # those with gathered data
        self.held: dict[Channel, None] = {}  # those that wait until the connection accepts data
        self.live: set[Channel] = set()  # those with a descriptor
        self.growth = GROWTH
        self.round_trip = math.inf
        """The least seconds until a reply of the server; infinite before the first one."""
        self.ended: OSError | None = None  # why no channel can be opened any more
        self._transport = transport
        # A number is in one of these three.
        self._entries: dict[int, Channel] = {}  # open
        self._pending: dict[int, Opening] = {}  # requested
        self._reserved: set[int] = set()  # about to be opened by the server, or to be closed by it
        self._free: list[int] = []
        self.streams = 0
        self._idle: Callable[[], object] | None = None
        self._on_sent: Callable[[], object] | None = None
        self._later: list[bytes] = []  # messages that wait for new keys
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
        """Send a message, as soon as no keys are being exchanged."""
        # RFC 4253, section 7.1: between KEXINIT and NEWKEYS only the messages of the key exchange may be sent.
        if self._transport.sendable:
            self.packetizer.send(payload)
        elif len(self._later) < _LATER:
            self._later.append(payload)
        else:
            self.wire.end(CarrierError("the server asks too much while keys are exchanged"))

    def is_held(self) -> bool:
        """Return whether the connection accepts no data for now."""
        return self.wire.clogged or not self._transport.sendable

    def holds_back(self) -> bool:
        """Return whether the channels must not read more data; sends what waits first, if that is much."""
        if self.wire.unsent > _UNSENT:
            self.wire.flush()
        return self.wire.clogged or not self._transport.sendable

    def _resume(self) -> None:
        later, self._later = self._later, []
        for payload in later:
            self.send(payload)
        # Taken first: an entry that is not accepted yet puts itself back, and must not be called again in this round.
        held, self.held = self.held, {}
        for entry in held:
            entry.settle()

    def _deliver(self) -> None:
        touched = self.touched
        while touched:
            touched.pop().deliver()

    def replied(self, asked: float) -> None:
        """Note the reply of the server to a request that was sent at ``asked`` (monotonic seconds)."""
        self.round_trip = min(self.round_trip, time.monotonic() - asked)

    # -- opening --------------------------------------------------------------------------------------------------

    def number(self, pending: Opening | None = None) -> int:
        """Reserve a free number.

        :param pending: the channel that is being requested; ``None`` for one that the server opens.
        """
        # The numbers in use are 0 to n-1 but for the free ones, so that the table of them stays dense.
        number = self._free.pop() if self._free else len(self)
        if pending is None:
            self._reserved.add(number)
        else:
            self._pending[number] = pending
        return number

    def put(self, number: int, entry: Channel) -> None:
        """Register an open channel, which handles the messages for the number from now on."""
        self._pending.pop(number, None)
        self._reserved.discard(number)
        self._entries[number] = entry
        self.one_more()

    def free(self, number: int) -> None:
        """Release a number."""
        holder = self._entries.pop(number, None) or self._pending.pop(number, None)
        # Only once: CLOSE of both sides and a refusal may free one number twice.
        if holder is not None or number in self._reserved:
            self._reserved.discard(number)
            self._free.append(number)

    def __len__(self) -> int:
        """Return how many numbers are in use."""
        return len(self._entries) + len(self._pending) + len(self._reserved)

    def one_more(self) -> None:
        """Count a stream that is being opened."""
        self.streams += 1

    def one_less(self) -> None:
        """Stop counting a stream, which is over or was not opened."""
        self.streams -= 1
        if self._on_sent is not None:
            self._look_sent()
        if not self.streams:
            idle, self._idle = self._idle, None
            if idle is not None:
                guarded(idle)

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call ``call`` once no stream is open."""
        if self.streams:
            self._idle = call
        else:
            call()

    def when_sent(self, call: Callable[[], object]) -> None:
        """Call ``call`` once the server has taken what was sent on closed streams; at exit."""
        self._on_sent = call
        self._look_sent()

    def _look_sent(self) -> None:
        call = self._on_sent
        if call is None:
            return
        leaving = [entry for entry in list(self._entries.values()) if entry.leave()]
        if not leaving:
            self._on_sent = None
            guarded(call)

    def _on_confirmed(self, body: memoryview) -> None:
        number, remote, credit, packet = struct.unpack_from(">IIII", body)
        pending = self._pending.get(number)
        # A server that confirms what was not asked is wrong, but harms only itself.
        if pending is None:
            return
        if pending.is_wanted():
            try:
                return pending.confirmed(number, remote, credit, packet)
            except OSError as error:
                pending.resolve(error)
        # The caller has given up; the number is free when the server has closed the channel, too.
        del self._pending[number]
        self._reserved.add(number)
        self.send(struct.pack(">BI", CLOSE, remote))

    def _on_refused(self, body: memoryview) -> None:
        number, code, length = struct.unpack_from(">III", body)
        pending = self._pending.get(number)
        if pending is not None:
            self.free(number)
            pending.refused(code, bytes(body[12 : 12 + length]).decode("utf-8", "replace"))

    # -- messages for channels ------------------------------------------------------------------------------------

    def _find(self, body: memoryview) -> Channel | None:
        (number,) = struct.unpack_from(">I", body)
        return self._entries.get(number)

    def _on_data(self, body: memoryview) -> None:
        number, size = struct.unpack_from(">II", body)
        data = body[8 : 8 + size]
        if size > len(data):
            raise ValueError("data that are longer than their message")
        entry = self._entries.get(number)
        if entry is not None and size:
            entry.receive(data)

    def _on_extended(self, body: memoryview) -> None:
        entry = self._find(body)
        _, kind, _ = struct.unpack_from(">III", body)
        if entry is not None:
            entry.extended(kind, body[12:])

    def _on_adjust(self, body: memoryview) -> None:
        entry = self._find(body)
        if entry is not None:
            entry.adjust(*struct.unpack_from(">I", body, 4))

    def _on_end(self, body: memoryview) -> None:
        entry = self._find(body)
        if entry is not None:
            entry.end()

    def _on_close(self, body: memoryview) -> None:
        (number,) = struct.unpack_from(">I", body)
        entry = self._entries.get(number)
        if entry is not None:
            entry.close()
        elif number in self._reserved:
            self.free(number)

    def _on_request(self, body: memoryview) -> None:
        entry = self._find(body)
        (length,) = struct.unpack_from(">I", body, 4)
        end = 8 + length
        wants_answer = bool(body[end])
        if entry is not None:
            entry.requested(bytes(body[8:end]), wants_answer, body[end + 1 :])

    def _on_granted(self, body: memoryview) -> None:
        entry = self._find(body)
        if entry is not None:
            entry.granted()

    def _on_denied(self, body: memoryview) -> None:
        entry = self._find(body)
        if entry is not None:
            entry.denied()

    # -- the end --------------------------------------------------------------------------------------------------

    def close_streams(self, error: OSError, done: Callable[[], object]) -> None:
        """Fail the streams whose owner is there, send the rest of the others, and call ``done`` when that is done."""
        before, self._idle = self._idle, None
        self._fail_pending(error)
        # `look` and not the last event: an owner that has closed its end in this moment has sent all, and must not be
        # failed.
        for entry in [one for one in self.live if not one.look()]:
            entry.fail(error)

        def both() -> None:
            if before is not None:
                guarded(before)
            done()

        self.when_idle(both)

    def fail(self, error: OSError) -> None:
        """Fail every stream at once: the connection has ended.

        Also those whose owner has left them, and which wait for the server to close them: it never will.
        """
        self._fail_pending(error)
        for entry in dict.fromkeys((*self.live, *self._entries.values())):
            entry.fail(error)
        # One that stands for all: the end of the last stream is what callers of `when_idle` and `when_sent` wait for.
        self.streams = 1
        self.one_less()

    def _fail_pending(self, error: OSError) -> None:
        self.ended = error
        for pending in list(self._pending.values()):
            pending.resolve(error)

    def abandon(self) -> None:
        """In a forked child: close only the descriptors."""
        for entry in self.live:
            entry.abandon()


class Requests:
    """The requests of one connection that have no reply yet; for the transport's thread only."""

    def __init__(self, transport: Transport, mux: Mux) -> None:
        self._mux = mux
        self._waiting: deque[tuple[float, Answered]] = deque()  # with the time of each request
        self._has_spoken = transport.wire.is_prompt
        transport.handle(ASK, self._on_request)
        transport.handle(GRANTED, self._on_success)
        transport.handle(DENIED, self._on_failure)

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, name: str, data: bytes, answered: Answered) -> None:
        """Send a request for which a reply is required; ``answered`` is called once."""
        if self._mux.ended is not None:
            answered(None)
            return
        # Before it is sent: replies come in the order of requests and name none.
        self._waiting.append((time.monotonic(), answered))
        self._mux.send(struct.pack(">B", ASK) + text(name) + b"\1" + data)

    def fail(self) -> None:
        """Fail the pending requests: the connection has ended."""
        while self._waiting:
            self._waiting.popleft()[1](None)

    def _on_success(self, body: memoryview) -> None:
        self._on_reply(bytes(body))

    def _on_failure(self, body: memoryview) -> None:
        self._on_reply(None)

    def _on_reply(self, data: bytes | None) -> None:
        if self._waiting:
            asked, answered = self._waiting.popleft()
            self._mux.replied(asked)
            answered(data)

    def _on_request(self, body: memoryview) -> None:
        """Reject a request of the server, if it requires a reply."""
        (length,) = struct.unpack_from(">I", body)
        if body[4 + length]:
            self._mux.send(bytes((DENIED,)))
        elif not self._has_spoken:
            # OpenSSH announces its host keys right after the login, and Nagle's algorithm delays its next reply until
            # they are acknowledged. Data carry the acknowledgement: behind another server that is 40 ms earlier.
            # `Opening.confirmed` does the same for each channel.
            self._has_spoken = True
            self._mux.send(NOTHING)
