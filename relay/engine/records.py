"""Records of connections, and the figures of a tunnel."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..addresses.hops import Route
from ..eventloop.histogram import Histogram
from ..eventloop.sockets import format_address
from ..streams.identity import Identity, client_text, identity_of_peer
from ..streams.stream import Request, StreamPath, hop_times
from .connection_id import epoch, id_of, next_number

if TYPE_CHECKING:  # few tunnels have balancers
    from ..access.proxy_header import ProxyHeader

REASONS: Mapping[str, str | None] = {
    "done": None,  # the party whose EOF came first
    "refused": "target",
    "unreachable": "target",
    "connect_timeout": "relay",
    "idle": "relay",
    "lifetime": "relay",
    "linger": "relay",
    "client_reset": "client",
    "target_reset": "target",
    "carrier_lost": "target",
    "resume_lost": "target",
    "factory_error": "relay",
    "denied": "relay",
    "quota": "relay",
    "overloaded": "relay",
    "worker_lost": "relay",
    "killed": "admin",
    "closed": "admin",
}
"""Each word for the end of a connection, and who ended it then. A factory of a user may have further words."""


DIRECT = "1:target"
"""The only part of a connect without hops."""


class ConnectionState(enum.Enum):
    """The state of a connection; :mod:`relay.engine.connection` has the table.

    The value of a member is its name in the table, and the word for it in records.
    """

    REQUESTING = "requesting", "connecting"
    ADMITTING = "admitting", "connecting"
    QUEUED = "queued", "connecting"
    CONNECTING = "connecting", "connecting"
    REPLYING = "replying", "connecting"
    TARPIT = "tarpit", "connecting"
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
    """The client's address, as ``accept()`` returned it, or as the header of a balancer has it."""
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
    id: str = ""
    """Its identity: a UUID of version 7 (RFC 9562), so that the order of the texts is that of the acceptance."""
    started: float = 0.0
    """When it was accepted, seconds since the epoch."""
    connect_time: float | None = None
    """Seconds from the start of the dial until the outgoing stream was open; ``None`` if it was not."""
    first_byte: float | None = None
    """Seconds from its acceptance to the first byte of the target; ``None`` if none has come."""
    by: str | None = None
    """The party that ended it: ``client``, ``target``, ``relay`` or ``admin``."""
    rule: str | None = None
    """The rule that denied the client: ``deny`` and the rule, ``allow`` if none matches, ``admit``, ``login``, or
    ``access-list`` for lists of the listener itself."""
    hop_times: tuple[tuple[str, float], ...] = ()
    """The parts of the connect, each the number and the kind of what was reached, and the seconds that it took: such as
    ``1:ssh`` (the wait for a hop that was not up), ``2:target`` and ``2:tls`` or ``2:websocket`` (the handshake with
    it)."""
    carrier: str | None = None
    """The shared connection that it goes over, such as ``ssh://me@bastion``."""
    attempts: int = 1
    """How often the dial was begun: again whenever a carrier was lost before the stream was open."""
    warm: bool = False
    """Whether its stream was open before its client came; see ``warm`` of :class:`relay.Tunnel`."""
    identity: Identity | None = None
    """Who the client is, as its transport can tell; ``None`` if it cannot."""
    server_name: str | None = None
    """The name that a client over TLS has asked for (SNI), as the listener or the header of a balancer has it."""
    unique_id: str | None = None
    """The id that the header of a balancer has given to the connection; the target gets it then, and not :attr:`id`."""
    tag: str | None = None
    """The ``tag`` of its tunnel; see :class:`relay.Tunnel`."""
    resumes: int = 0
    """How often its outgoing stream has gone on over another carrier (``resume=yes``)."""

    @property
    def client(self) -> str:
        """The client as a log shows it: its address, and its identity where that says more."""
        kind, name = self.identity[:2] if self.identity is not None else ("", "")
        return client_text(format_address(self.peer), kind, name)


class WarmFigures(NamedTuple):
    """The figures of the warm streams of a tunnel. None of them ever decreases, except the first."""

    ready: int
    """Streams that are ready for a client."""
    hits: int
    """Clients that got such a stream."""
    misses: int
    """Clients for which none was ready."""
    ended: int
    """Streams that the target or a lost carrier ended before a client came."""
    expired: int
    """Streams that were closed at the end of ``warm_for``."""


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
    warm_hits: int = 0
    """Connections whose stream was open before their client came."""
    warm_misses: int = 0
    """Connections for which no such stream was ready, in a tunnel with ``warm``."""


class Metrics(NamedTuple):
    """All counters of a tunnel, for monitoring. None of them ever decreases, except the states."""

    accepted: int
    """Connections accepted."""
    states: Mapping[str, int]
    """``connecting``, ``open`` and ``half-closed`` → the connections that are in this state."""
    ended: Mapping[str, int]
    """Reason → connections that ended for it; every word of :data:`REASONS` is there."""
    received: int
    """Bytes from clients, open connections included."""
    sent: int
    """Bytes to clients, open connections included."""
    spliced_received: int
    """Those bytes from clients that were spliced, not copied."""
    spliced_sent: int
    """The same for the bytes to clients."""
    connect_times: Histogram
    """Of the connections that have ended and were open: seconds from the start of the dial until they were."""
    ages: Histogram
    """Of the connections that have ended: seconds from their acceptance to their end."""
    denied: Mapping[str, int]
    """Rule → clients that it denied. Of more than 100 rules, the rest is ``other``."""
    accept_errors: Mapping[str, int]
    """Name of the error, such as ``EMFILE`` → how often accepting a client failed with it."""
    hop_times: Mapping[str, Histogram]
    """Number and kind of what was reached, such as ``1:ssh`` or ``2:target`` → the times of :attr:`connect_times` that
    this took; see :attr:`ConnectionRecord.hop_times`."""
    warm: WarmFigures | None = None
    """The figures of its warm streams; ``None`` if it never had any."""
    bans: Mapping[str, int] = {}
    """Limit that bans → the bans that have not ended."""
    throttled: float = 0.0
    """Seconds for which connections waited for bandwidth, each direction for itself."""

    def stats(self) -> Stats:
        """Return the figures that users see."""
        return Stats(
            accepted=self.accepted,
            active=sum(self.states.values()),
            received=self.received,
            sent=self.sent,
            failed={reason: n for reason, n in self.ended.items() if n and reason not in ("done", "closed")},
            warm_hits=self.warm.hits if self.warm is not None else 0,
            warm_misses=self.warm.misses if self.warm is not None else 0,
        )


class ConnectionSummary:
    """The part of a connection that stays after its end: the plain data of its record."""

    __slots__ = (
        "peer", "started", "number", "target", "request", "dialed", "opened", "first_byte", "finished", "received",
        "sent", "spliced", "target_ended_first", "reason", "rule", "path", "route", "identity", "header",
        "server_name",
    )  # fmt: skip

    def __init__(self, peer: Any, started: float) -> None:
        self.peer = peer
        self.started = started  # the acceptance; this and all times: monotonic seconds
        self.number = next_number()  # of the connection in this process; its id follows from it
        self.target: Any = None  # its name, or its address, which becomes a text only when a record is made
        self.request: Request | None = None  # of a proxy client
        self.dialed = 0.0  # when the dial began, if that was not at the acceptance
        self.opened = 0.0
        self.first_byte = 0.0  # of the target
        self.finished = 0.0
        self.received = 0
        self.sent = 0
        self.spliced: tuple[int, int] | None = None  # of these bytes, received and sent; None if all were copied
        self.target_ended_first = False  # the target's EOF came before the client's
        self.reason: str | None = None
        self.rule: str | None = None  # that denied the client
        self.path: StreamPath | None = None  # None for a connect without hops
        self.route: Route = ()
        self.identity: Identity | None = None  # None for that of the peer's address
        self.header: ProxyHeader | None = None  # of a balancer
        self.server_name: str | None = None  # that a client over TLS has asked for

    def who(self) -> Identity | None:
        """Return who the client is."""
        identity = self.identity or identity_of_peer(self.peer)
        login = self.request.login if self.request is not None else None
        if login is not None:
            identity = (identity or Identity("", "")).with_login(*login)
        return identity

    def reported(self) -> ProxyHeader | None:
        """Return the header of a balancer, if one has come, perhaps before the handshake of TLS."""
        return self.header or getattr(self.peer, "header", None)

    @property
    def connect_time(self) -> float | None:
        """Seconds from the start of the dial until the stream was open."""
        return self.opened - (self.dialed or self.started) if self.opened else None

    def hop_times(self) -> tuple[tuple[str, float], ...]:
        """Return the times of the parts of the connect, each with the number and the kind of what was reached."""
        if not self.opened:
            return ()
        if self.path is None:
            return ((DIRECT, self.opened - (self.dialed or self.started)),)
        return hop_times(self.path, self.route)

    def record(self, now: float, state: ConnectionState) -> ConnectionRecord:
        """Return the record of a connection whose figures are those noted here."""
        return self.record_of(now, state, self.received, self.sent, self.spliced is not None, self.first_byte)

    def record_of(
        self, now: float, state: ConnectionState, received: int, sent: int, is_spliced: bool, first_byte: float
    ) -> ConnectionRecord:
        """Return the record with these figures."""
        reported = self.reported()
        return ConnectionRecord(
            peer=self.peer,
            target=self.target_name(),
            age=(self.finished or now) - self.started,
            received=received,
            sent=sent,
            engine="splice" if is_spliced else "copy",
            state=state.reported,
            reason=self.reason,
            id=id_of(self.number, self.started),
            started=epoch(self.started),
            connect_time=self.connect_time,
            first_byte=first_byte - self.started if first_byte else None,
            by=self._ended_by(),
            rule=self.rule,
            hop_times=self.hop_times(),
            carrier=self.path.carrier if self.path is not None else None,
            attempts=self.path.attempts if self.path is not None else 1,
            warm=self.path is not None and self.path.warm,
            identity=self.who(),
            server_name=self.server_name,
            unique_id=reported.unique_id if reported is not None else None,
            resumes=self.path.resumes.count if self.path is not None and self.path.resumes is not None else 0,
        )

    def target_name(self) -> str | None:
        """Return the name of the outgoing stream, once it is known."""
        return format_address(self.target or self.request) or None

    def _ended_by(self) -> str | None:
        if self.reason == "done":
            return "target" if self.target_ended_first else "client"
        return REASONS.get(self.reason, "relay") if self.reason is not None else None
