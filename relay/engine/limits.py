"""The limits of a tunnel's connections."""

from __future__ import annotations

from ..streams.checks import HANDSHAKE

__all__ = ["Limits"]


class Limits:
    """How long a connection may do what, in seconds; ``None`` for ever."""

    __slots__ = ("lifetime", "connect", "idle", "linger", "making", "handshake", "first")

    def __init__(self, lifetime: float | None, connect: float | None, idle: float | None, linger: float | None) -> None:
        self.lifetime = lifetime
        self.connect = connect
        self.idle = idle
        self.linger = linger
        # How long its stream may take to be made.
        making = [limit for limit in (lifetime, connect) if limit is not None]
        self.making = min(making) if making else None
        # How long a client may take for its handshake, or to say where it wants to be led.
        self.handshake = HANDSHAKE if self.making is None else self.making
        # When to look at an open connection for the first time. Counting linger in saves setting a second deadline for
        # the many connections that end soon after their first end of file; a short one would only wake for nothing.
        looks = [limit for limit in (lifetime, idle) if limit is not None]
        if linger is not None and linger >= 1:
            looks.append(linger)
        self.first = min(looks) if looks else None
