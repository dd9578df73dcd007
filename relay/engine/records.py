"""What is told of connections, living ones and those that have ended."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["ConnectionRecord", "State", "Stats"]


class State(enum.Enum):
    """Where a connection stands."""

    CONNECTING = "connecting"
    OPEN = "open"
    HALF_CLOSED = "half-closed"
    CLOSED = "closed"


class ConnectionRecord(NamedTuple):
    """What is to be known of one connection."""

    peer: Any
    """The address that the client came from, as ``accept()`` told it."""
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
    """Why it ended; ``None`` while it lives."""


class Stats(NamedTuple):
    """What a tunnel has done so far."""

    accepted: int
    """Connections accepted."""
    active: int
    """Connections that live, connecting ones included."""
    received: int
    """Bytes from clients."""
    sent: int
    """Bytes to clients."""
    failed: Mapping[str, int]
    """Reason → connections that ended for it; every reason but ``done`` and ``closed``."""
