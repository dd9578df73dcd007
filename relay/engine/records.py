"""Records of connections, and the figures of a tunnel."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..eventloop.sockets import format_address
from ..streams.request import Request

__all__ = ["ConnectionRecord", "ConnectionState", "ConnectionSummary", "Stats"]


class ConnectionState(enum.Enum):
    """The state of a connection; :mod:`relay.engine.connection` has the table.

    The value of a member is its name in the table, and the word for it in records.
    """

    REQUESTING = "requesting", "connecting"
    QUEUED = "queued", "connecting"
    CONNECTING = "connecting", "connecting"
    REPLYING = "replying", "connecting"
    OPEN = "open", "open"
    HALF_CLOSED = "half-closed", "half-closed"
    DISCARDING = "discarding", "half-closed"
    CLOSED = "closed", "closed"

    def __init__(self, text: str, reported: str) -> None:
        self.text = text
        self.reported = reported


class ConnectionRecord(NamedTuple):
    """One connection, open or ended."""

    peer: Any
    """The client's address, as ``accept()`` returned it."""
    target: str | None
    """The name of the outgoing stream, once it is known."""
    age: float
    """Seconds from its acceptance until now, or until it ended."""
    received: int
    """Bytes from the client."""
    sent: int
    """Bytes to the client."""
    engine: str
    """``splice`` once either direction has been spliced, else ``copy``."""
    state: str
    """``connecting``, ``open``, ``half-closed`` or ``closed``."""
    reason: str | None = None
    """The word for why it ended; ``None`` while it is open."""


class Stats(NamedTuple):
    """The figures of a tunnel since it was made."""

    accepted: int
    """Connections accepted."""
    active: int
    """Open connections, connecting ones included."""
    received: int
    """Bytes from clients."""
    sent: int
    """Bytes to clients."""
    failed: Mapping[str, int]
    """Reason → connections that ended for it; every reason but ``done`` and ``closed``."""


class ConnectionSummary:
    """The part of a connection that stays after its end: its record."""

    # Class attributes as defaults, because most are set once or never, and each new connection pays for its own.
    target: Any = None  # its name, or its address, which becomes a text only when a record is made
    request: Request | None = None  # of a proxy client
    opened = 0.0  # monotonic seconds
    finished = 0.0
    received = 0
    sent = 0
    spliced = False
    reason: str | None = None

    def __init__(self, peer: Any, started: float) -> None:
        self.peer = peer
        self.started = started  # monotonic seconds

    def record(self, now: float, state: ConnectionState) -> ConnectionRecord:
        """Return the record of a connection whose figures are those noted here."""
        return self.record_of(now, state, self.received, self.sent, self.spliced)

    def record_of(
        self, now: float, state: ConnectionState, received: int, sent: int, spliced: bool
    ) -> ConnectionRecord:
        """Return the record with these figures."""
        return ConnectionRecord(
            peer=self.peer,
            target=self.target_name(),
            age=(self.finished or now) - self.started,
            received=received,
            sent=sent,
            engine="splice" if spliced else "copy",
            state=state.reported,
            reason=self.reason,
        )

    def target_name(self) -> str | None:
        """Return the name of the outgoing stream, once it is known."""
        return format_address(self.target or self.request) or None
