"""The limits of a tunnel's connections, and the deadline of one connection that follows from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from ..eventloop.loop import Timers
from ..eventloop.poller import READ
from ..streams.checks import FIRST_BYTE, HANDSHAKE
from ..streams.proxy_handshake import HandshakeReader
from ..streams.stream import Stream
from .flow_pair import FlowPair
from .options import TunnelOptions
from .records import ConnectionState

if TYPE_CHECKING:  # parts of one machine name each other
    from .connection import Connection

# Seconds for which the EOF of a target is held back from a client stream without half-close: after the last byte of the
# client, which may still send, and after the last byte of the target: a router of I2P may lose an EOF that is too near.
_QUIET = 1.0
_BEFORE_EOF = 0.25

LOOK = 15.0  # seconds after its acceptance, at most, until the relay thread looks at a connection that lasts


class Limits:
    """The limits of each connection of a tunnel, in seconds; ``None`` for no limit."""

    __slots__ = (
        "lifetime",
        "connect",
        "idle",
        "linger",
        "first_byte",
        "connect_limit",
        "handshake",
        "first_check",
        "come_soon",
    )

    def __init__(
        self,
        lifetime: float | None,
        connect: float | None,
        idle: float | None,
        linger: float | None,
        first_byte: float | None = None,
    ) -> None:
        self.lifetime = lifetime
        self.connect = connect
        self.idle = idle
        self.linger = linger
        self.first_byte = first_byte
        # For making the outgoing stream, from the acceptance on.
        connecting = [limit for limit in (lifetime, connect) if limit is not None]
        self.connect_limit = min(connecting) if connecting else None
        # For a handshake with the client, and for its request to a proxy.
        self.handshake = HANDSHAKE if self.connect_limit is None else self.connect_limit
        # From the opening to the first look at an open connection. With linger, the many connections that end soon
        # after their first EOF need no second deadline; a short one would only wake the thread in vain.
        looks = [limit for limit in (lifetime, idle, first_byte) if limit is not None]
        if linger is not None and linger >= 1:
            looks.append(linger)
        self.first_check = min(looks) if looks else None
        # Whether one of these, or linger, may come before the relay thread looks at all new connections.
        self.come_soon = any(limit is not None and limit <= LOOK for limit in (lifetime, idle, first_byte, linger))

    @classmethod
    def of(cls, options: TunnelOptions) -> Self:
        """Return those of a tunnel with these options."""
        o = options
        return cls(o.timeout, o.connect_timeout, o.idle_timeout, o.linger, o.first_byte_timeout)


class Pending(Protocol):
    """The thing that a connection waits for before it is open: a request, its stream, or the end of a last reply."""

    def abandon(self) -> None:
        """Give it up."""

    def too_late(self) -> None:
        """Log, if it knows, why it was not there in time."""

    def after_fork(self) -> None:
        """Only close its descriptors, in a forked child."""


class ConnectionDeadline:
    """The time of the next look at the limits of one connection. Belongs to the relay thread.

    Bytes that move do not change the deadline. When it comes, the look tells whether they have postponed the limit.
    Where no limit can come before the relay thread looks at all new connections (:data:`LOOK`), an open connection has
    none until then.

    :param connection: the connection.
    :param limits: of the tunnel.
    :param timers: of the relay thread's loop.
    """

    __slots__ = ("limits", "due", "tick", "_connection", "_timers", "_queued", "_progress")

    def __init__(self, connection: Connection, limits: Limits, timers: Timers) -> None:
        self.limits = limits
        self.due = 0.0  # later than a limit only if bytes have moved meanwhile
        self.tick = 0
        self._connection: Connection | None = connection
        self._timers = timers
        self._queued = (0, 0)  # the unsent bytes at the last look
        self._progress = 0.0  # the time of the last look that found another number, so that bytes still move

    def start_request(self, now: float) -> None:
        """Limit the time until the first byte of the client's request."""
        self._set(now + min(FIRST_BYTE, self.limits.handshake), now)

    def start_connecting(self, started: float, now: float) -> None:
        """Limit the time until the outgoing stream is connected."""
        if self.limits.connect_limit is not None:
            self._set(started + self.limits.connect_limit, now)

    def start_open(self, now: float) -> None:
        """Look at the limits of an open connection after a while, unless a look is due before that."""
        first = self.limits.first_check
        if first is not None and not (self.tick and self.due <= now + first):
            self._set(now + first, now)

    def update(self, now: float) -> None:
        """Set the deadline to the next limit, unless it comes before that."""
        due, _ = self._next_limit(now)
        if due is not None and not (self.tick and self.due <= due):
            self._set(due, now)

    def update_linger(self, now: float) -> None:
        """Do the same when one direction has ended."""
        linger = self.limits.linger
        if linger is not None and not (self.tick and self.due <= now + linger):
            self.update(now)

    def change_idle(self, seconds: float | None, now: float) -> None:
        """Change the limit of time without traffic; the others stay."""
        limits = self.limits
        self.limits = Limits(limits.lifetime, limits.connect, seconds, limits.linger, limits.first_byte)
        if self._connection is not None and self._connection.flows is not None:
            self.update(now)

    def stop(self) -> None:
        """Look no more."""
        self._timers.cancel(self)

    def release(self) -> None:
        """Look no more, and forget the connection, which has ended."""
        self._timers.cancel(self)
        self._connection = None

    def expire(self, now: float) -> None:
        """Look whether a limit has been reached."""
        connection = self._connection
        if connection is None:
            return
        due, reason = self._next_limit(now)
        if due is not None and now >= due and reason in ("idle", "linger"):
            self._note_progress(now)
            due, reason = self._next_limit(now)
        if due is None:
            return
        if now < due:
            self._set(due, now)
        else:
            connection.limit_reached(reason, now)

    def crashed(self, now: float) -> None:
        """End the connection after a bug."""
        if self._connection is not None:
            self._connection.close("factory_error", now)

    def _set(self, due: float, now: float) -> None:
        self.due = due
        self._timers.set(self, due, now)

    def _next_limit(self, now: float) -> tuple[float | None, str]:
        """Return the time of the next limit if no byte moves until then, and its reason."""
        connection, limits = self._connection, self.limits
        assert connection is not None
        summary, state = connection.summary, connection.state
        found: list[tuple[float, str]] = []
        if limits.lifetime is not None:
            found.append((summary.started + limits.lifetime, "lifetime"))
        if state is ConnectionState.REQUESTING:
            begun = isinstance(connection.pending, HandshakeReader) and connection.pending.begun
            seconds = limits.handshake if begun else min(FIRST_BYTE, limits.handshake)
            found.append((summary.started + seconds, "connect_timeout"))
        elif state in _BEFORE_OPEN:
            if limits.connect is not None:
                found.append((summary.started + limits.connect, "connect_timeout"))
        elif connection.flows is not None:
            if limits.idle is not None:
                up, down = connection.flows.upstream, connection.flows.downstream
                found.append((max(summary.opened, self._progress, up.last, down.last) + limits.idle, "idle"))
            if limits.first_byte is not None and state is not ConnectionState.DISCARDING:
                found += self._first_byte_limits(connection.flows, limits.first_byte, now)
            if state is ConnectionState.DISCARDING:
                found.append(self._discarding_limit(connection.flows))
            elif state is ConnectionState.HALF_CLOSED:
                found += self._half_closed_limits(connection.flows, connection.client_stream)
        return min(found, default=(None, ""))

    def _first_byte_limits(self, flows: FlowPair, seconds: float, now: float) -> list[tuple[float, str]]:
        """Return the limit of the target's first byte, or the next look.

        The client's first byte sets no deadline, so that it costs nothing: a look every ``seconds`` is in time for it.
        """
        up, down = flows.upstream, flows.downstream
        if down.last or down.ended:
            return []
        begun = up.first or up.last
        if not begun or not down.mask & READ:  # a limit of bandwidth keeps relay from reading
            begun = now
        return [(begun + seconds, "unreachable")]

    def _discarding_limit(self, flows: FlowPair) -> tuple[float, str]:
        ended = max(flows.upstream.ended, flows.downstream.ended)
        return ended + (self.limits.linger or _QUIET), "done"

    def _half_closed_limits(self, flows: FlowPair, client: Stream | None) -> list[tuple[float, str]]:
        ended = flows.upstream if flows.upstream.ended else flows.downstream
        other = ended.reverse
        found = []
        if self.limits.linger is not None:
            found.append((max(ended.ended, self._progress, other.last) + self.limits.linger, "linger"))
        if ended is flows.downstream and client is not None and not client.half_close:  # the client's EOF is held back
            found.append((max(ended.ended, ended.last + _BEFORE_EOF, other.last + _QUIET), "done"))
        return found

    def _note_progress(self, now: float) -> None:
        """Note the time if bytes that the engine has moved still leave the kernel, to a slow peer.

        If the number has changed since the last look, bytes have moved. The first look has nothing to compare with, so
        a peer that has stopped while bytes wait for it gets its time twice.
        """
        assert self._connection is not None
        assert self._connection.flows is not None
        queued = self._connection.flows.unsent()
        if any(queued) and queued != self._queued:
            self._queued = queued
            self._progress = now


_BEFORE_OPEN = (ConnectionState.ADMITTING, ConnectionState.QUEUED, ConnectionState.CONNECTING, ConnectionState.REPLYING)
