"""Streams of the embedded SAM bridge: two ends, each of which a program has, or will have, or had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...eventloop.loop import Timer
from .values import Settings
from .wire import Hub, Wire

__all__ = ["End", "Offer", "Owner", "join"]

MOST = 64 << 20  # bytes that a network holds for programs that do not read; beyond it those who send have to wait
FAIR = 256 << 10  # bytes that each stream may hold beside that, so that one that stands does not stop the others
TAIL = 8 << 10  # bytes that i2pd 2.45.1 writes yet once the far end has closed


class Owner(Protocol):
    """The destination that an end of a stream belongs to."""

    hub: Hub
    settings: Settings
    ends: set[End]
    pending: dict[Offer, None]  # streams that wait to be accepted


class End:
    """One end of a stream. What comes before a program has it waits here.

    :param destination: whose it is.
    """

    __slots__ = ("destination", "peer", "_wire", "_early", "_over")

    def __init__(self, destination: Owner) -> None:
        self.destination = destination
        self.peer: End | None = None  # None: the bytes of this end go nowhere
        self._wire: Wire | None = None
        self._early = bytearray()
        self._over = False  # the far end has closed
        destination.ends.add(self)

    def take(self, wire: Wire, first: bytes = b"") -> None:
        """The program has come.

        :param wire: to it.
        :param first: the line that it reads before the bytes of the stream.
        """
        early, self._early = self._early, bytearray()
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
        """The program has said something; see :class:`samwire.User`."""
        if self.peer is not None and not self.peer.hear(data) and self._wire is not None:
            self._wire.read(False)

    def hear(self, data: bytes) -> bool:
        """Pass on to the program what the far end says.

        :returns: whether more may come before this has been written.
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
        """The program has read; see :class:`samwire.User`."""
        if self.peer is not None:
            self.peer._go_on()

    def closed(self) -> None:
        """The program has gone; the far end hears so when it has heard everything else."""
        self._leave()
        peer, self.peer = self.peer, None
        if peer is not None:
            peer.peer = None
            peer._over = True
            if peer._wire is not None:
                peer._finish(peer._wire)

    def close(self) -> None:
        """Close this end; the far end reads EOF."""
        self.closed()
        if self._wire is not None:
            self._wire.close()

    def vanish(self) -> None:
        """Close this end; the far end never hears of it."""
        self._leave()
        if self.peer is not None:
            self.peer.peer = None
            self.peer._go_on()
            self.peer = None
        if self._wire is not None:
            self._wire.close()

    def _go_on(self) -> None:
        if self._wire is not None:
            self._wire.read(True)

    def _finish(self, wire: Wire) -> None:
        wire.read(True)  # to see the program go, even where it was not to say more
        if self.destination.settings.loses_tail and wire.backlog:
            wire.keep(TAIL)
        else:
            wire.finish()

    def _leave(self) -> None:
        self.destination.ends.discard(self)
        self.destination.hub.held -= len(self._early)
        self._early.clear()


class Offer:
    """A stream that waits to be accepted.

    :param end: what is accepted.
    :param peer: the destination of the client, as the accepting program reads it.
    :param ports: that who connected has named: from and to.
    :param on_result: called once, with ``True`` if it was accepted; not if the end closes without a reply.
    """

    __slots__ = ("end", "peer", "ports", "_on_result", "_timer")

    def __init__(self, end: End, peer: str, ports: tuple[str, str], on_result: Callable[[bool], object]) -> None:
        self.end = end
        self.peer = peer
        self.ports = ports
        self._on_result = on_result
        self._timer = Timer(end.destination.hub.loop.timers, self._expired)

    def wait(self, now: float) -> None:
        """Begin to wait."""
        self._timer.start(now + self.end.destination.settings.silence, now)

    def accept(self) -> None:
        """Report that it is accepted; the caller takes the end next."""
        self._timer.stop()
        self._on_result(True)

    def refuse(self) -> None:
        """It is not."""
        self.drop()
        self.end.close()
        self._on_result(False)

    def drop(self) -> None:
        """It is neither; who connected hears nothing more."""
        self._timer.stop()
        self.end.destination.pending.pop(self, None)

    def _expired(self, now: float) -> None:
        self.refuse()


def join(one: End, other: End) -> None:
    """Let each hear what is said at the other."""
    one.peer, other.peer = other, one
