"""Streams of the embedded SAM bridge: two ends, each connected to a program now, later or in the past."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...eventloop.loop import Timer
from .wire import Wire

if TYPE_CHECKING:
    from .destination import Destination

MOST = 64 << 20  # bytes that a network buffers for programs that do not read; beyond that senders wait
FAIR = 256 << 10  # bytes that each stream may buffer in any case, so that a stalled one does not stop the others
TAIL = 8 << 10  # bytes that i2pd 2.45.1 still writes after the far end has closed


class End:
    """One end of a stream. It buffers the bytes that come before a program is connected.

    :param destination: the destination of this end.
    """

    __slots__ = ("destination", "peer", "_wire", "_early", "_over")

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.peer: End | None = None  # None: bytes are discarded
        self._wire: Wire | None = None
        self._early = bytearray()
        self._over = False  # the far end has closed
        destination.ends.add(self)

    def take(self, wire: Wire, first: bytes = b"") -> None:
        """Connect the program.

        :param wire: its socket.
        :param first: a line before the bytes of the stream.
        """
        early, self._early = self._early, bytearray()
        # The bytes are now the wire's, which counts what it cannot write at once.
        self.destination.hub.held -= len(early)
        self._wire = wire
        wire.user = self
        cut = self._over and len(early) > 0 and self.destination.settings.loses_tail
        wire.send(first + (early[:TAIL] if cut else early))
        wire.read(True)
        if self._over and not cut:
            self._finish(wire)
        if not wire.backlog:
            self.drained()

    def received(self, data: bytes) -> None:
        """Pass on bytes of the program; see :class:`~relay.testing.sam.wire.User`."""
        if self.peer is not None and not self.peer.deliver(data) and self._wire is not None:
            self._wire.read(False)

    def deliver(self, data: bytes) -> bool:
        """Pass on bytes of the far end to the program.

        :returns: whether more may come before these are written.
        """
        if self._wire is not None:
            self._wire.send(data)
            backlog = self._wire.backlog
        else:
            self._early += data
            self.destination.hub.held += len(data)
            backlog = len(self._early)
        return backlog <= FAIR or self.destination.hub.held <= MOST

    def drained(self) -> None:
        """Continue once everything is written; see :class:`~relay.testing.sam.wire.User`."""
        if self.peer is not None:
            self.peer._go_on()

    def closed(self) -> None:
        """Handle the end of the program's socket; the far end gets EOF after the last byte."""
        self._leave()
        peer, self.peer = self.peer, None
        if peer is not None:
            # Both links are cut, so that neither end calls one that has ended.
            peer.peer = None
            peer._over = True
            if peer._wire is not None:
                peer._finish(peer._wire)

    def close(self) -> None:
        """Close this end; the far end gets EOF."""
        self.closed()
        if self._wire is not None:
            self._wire.close()

    def vanish(self) -> None:
        """Close this end without EOF for the far end."""
        self._leave()
        if self.peer is not None:
            self.peer.peer = None
            # It may have stopped reading because this end was full; what it reads now goes nowhere.
            self.peer._go_on()
            self.peer = None
        if self._wire is not None:
            self._wire.close()

    def _go_on(self) -> None:
        if self._wire is not None:
            self._wire.read(True)

    def _finish(self, wire: Wire) -> None:
        wire.read(True)  # to notice EOF, even if reading was paused
        if self.destination.settings.loses_tail and wire.backlog:
            wire.keep(TAIL)
        else:
            wire.finish()

    def _leave(self) -> None:
        self.destination.ends.discard(self)
        self.destination.hub.held -= len(self._early)
        self._early.clear()


class Offer:
    """An unaccepted stream.

    :param end: the end to accept.
    :param peer: the destination that opened it, in base64.
    :param ports: of its STREAM CONNECT: from and to.
    :param on_outcome: called once, with whether it was accepted; not if the end is closed without an answer.
    """

    __slots__ = ("end", "peer", "ports", "_on_outcome", "_timer")

    def __init__(self, end: End, peer: str, ports: tuple[str, str], on_outcome: Callable[[bool], object]) -> None:
        self.end = end
        self.peer = peer
        self.ports = ports
        self._on_outcome = on_outcome
        self._timer = Timer(end.destination.hub.loop.timers, self._expired)

    def wait(self, now: float) -> None:
        """Start the timeout."""
        self._timer.start(now + self.end.destination.settings.silence, now)

    def accept(self) -> None:
        """Report that it is accepted; the receiver takes the end next."""
        self._timer.stop()
        self._on_outcome(True)

    def refuse(self) -> None:
        """Close the end, and report that it is not accepted."""
        self.drop()
        self.end.close()
        self._on_outcome(False)

    def drop(self) -> None:
        """Remove it without reporting an outcome."""
        self._timer.stop()
        self.end.destination.acceptors.pending.pop(self, None)

    def _expired(self, now: float) -> None:
        self.refuse()


def join(one: End, other: End) -> None:
    """Let each deliver what is said at the other."""
    one.peer, other.peer = other, one
