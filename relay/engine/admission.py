"""The room of a tunnel: slots for its connections, and a spare descriptor for the outgoing stream of the last one."""

from __future__ import annotations

import os

from ..eventloop import reserve
from .connection import Connection


class Slots:
    """The connections of a tunnel, and which of them count. Belongs to the relay thread.

    A connection counts from the start of its outgoing stream. A half-open one does not: its client has not sent its
    request yet, or only gets a last reply. A queued one has its request, and waits for a slot. Those in the tarpit are
    denied.

    :param limit: the most connections that count, or −1.
    """

    __slots__ = ("limit", "connections", "half_open", "queued", "tarpit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.connections: dict[Connection, None] = {}  # all of them, the oldest first; so are the others
        self.half_open: dict[Connection, None] = {}
        self.queued: dict[Connection, None] = {}
        self.tarpit: dict[Connection, None] = {}

    def used(self) -> int:
        """Return the number of connections that count."""
        return len(self.connections) - len(self.half_open) - len(self.queued) - len(self.tarpit)

    def has_room(self) -> bool:
        """Return whether another client may be accepted."""
        return self.limit < 0 or len(self.connections) - len(self.half_open) - len(self.tarpit) < self.limit

    def next_queued(self) -> Connection | None:
        """Return the queued connection that gets a slot now, if there is a free one; it counts from now on."""
        if not self.queued or 0 <= self.limit <= self.used():
            return None
        connection = next(iter(self.queued))
        del self.queued[connection]
        return connection

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        del self.connections[connection]
        if self.half_open or self.queued or self.tarpit:
            self.half_open.pop(connection, None)
            self.queued.pop(connection, None)
            self.tarpit.pop(connection, None)


class SpareDescriptor:
    """A descriptor that is closed when the system has no other one for an outgoing stream.

    So each client that was accepted can be served. It is closed at first.
    """

    __slots__ = ("_descriptor",)

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def open(self) -> None:
        """Open the descriptor. Idempotent.

        :raises OSError: if the system has no descriptor left.
        """
        if self._descriptor is None:
            self._descriptor = os.open(os.devnull, os.O_RDONLY)

    def is_available(self) -> bool:
        """Return whether the descriptor is open; open it again if that is possible."""
        if self._descriptor is None or reserve.is_lent:
            return self._look()
        return True

    def _look(self) -> bool:
        try:
            self.open()
            return not reserve.is_lent or reserve.leaves(2)  # for a client and its stream
        except OSError:
            return False

    def release(self) -> bool:
        """Close the descriptor; return whether it was open."""
        if self._descriptor is None:
            return False
        os.close(self._descriptor)
        self._descriptor = None
        return True
