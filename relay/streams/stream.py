"""Streams: a kernel socket, and the facts about its transport that a socket cannot report.

Three of these are values of their own: the :class:`StreamPath`, the :class:`Resumes` in it, and the :class:`Request` of
a proxy's client.
"""

from __future__ import annotations

import socket as sockets
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from ..addresses.hops import Command, Proxy, Route
from ..addresses.resume import ResumeServer
from ..addresses.ssh import SSHServer
from ..eventloop.sockets import is_tls, reset, unsent
from .identity import Identity
from .session_socket import SessionSocket

HANDSHAKE = 0
"""The number of a TLS handshake with the target."""
WEBSOCKET = -1
"""The number of the handshake of a WebSocket with the target, that of TLS included."""

# Labels become series of metrics, which must have a bound however long a route is.
_MOST = 10  # labels by number; those beyond share the last one


class Resumes:
    """The number of carriers of a stream after its first one; it changes while the stream is open."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class StreamPath(NamedTuple):
    """The way in which a stream was made, as its dialers know it."""

    steps: tuple[tuple[int, float], ...]
    """The number of what was reached, and the seconds that it took: 1 for the first hop of the route, one more than the
    hops for the target. A hop that was up already has no step."""
    carrier: str | None = None
    """The name of the shared connection that it goes over."""
    attempts: int = 1
    """How often it was begun, because a carrier was lost meanwhile."""
    warm: bool = False
    """Whether it was open before its client came, so that its client has waited for no step."""
    route: Route | None = None
    """The hops to it, if its dialer has several routes; ``None`` for those of the dialer."""
    resumes: Resumes | None = None
    """Counts the carriers after the first one of a resumable stream; ``None`` for any other."""

    def extended(self, number: int, seconds: float) -> StreamPath:
        """Return the path with a further step."""
        return self._replace(steps=(*self.steps, (number, seconds)))


def hop_times(path: StreamPath, route: Route) -> tuple[tuple[str, float], ...]:
    """Return the seconds of each step, by the number and the kind of what was reached.

    :param path: of a stream.
    :param route: the hops to it.
    """
    found: dict[str, float] = {}
    for number, seconds in path.steps:
        label = _label(number, route)
        found[label] = found.get(label, 0.0) + seconds
    return tuple(found.items())


def _label(number: int, route: Route) -> str:
    target = len(route) + 1
    if number <= HANDSHAKE:
        return f"{min(target, _MOST)}:{'tls' if number == HANDSHAKE else 'websocket'}"
    if number >= target:
        return f"{min(target, _MOST)}:target"
    hop = route[number - 1]
    if isinstance(hop, Proxy):
        kind: str = "tor" if hop.is_tor else hop.protocol
    elif isinstance(hop, ResumeServer):
        kind = "resume"
    else:
        kind = "ssh" if isinstance(hop, SSHServer) else hop.scheme if isinstance(hop, Command) else "i2p"
    return f"{min(number, _MOST)}:{kind}"


class Request:
    """A client's request for a stream to an address that it names.

    :param host: a name, or an IPv4 or IPv6 address without brackets; the listener has checked it.
    :param port: from 1 to 65535.
    :param success_reply: bytes for the client once there is the stream, before any other byte.
    :param failure_reply: returns the bytes for the client if there is no stream, given the reason: ``refused``,
        ``unreachable``, ``connect_timeout``, ``denied`` or another word of a connection's record. ``None`` to reset it:
        it speaks no protocol that has replies.
    :param early: bytes that the client has sent already for the target.
    :param login: the protocol, ``socks`` or ``http``, and the user who has logged in; ``None`` if none has.
    """

    __slots__ = ("host", "port", "success_reply", "failure_reply", "early", "login")

    here: tuple[str, int] | None = None
    """Of a client that has named a server and not where it is: the address of the listener. Only a rule leads it
    anywhere, and none back there."""
    is_redirected = False
    """Whether the client has connected to the target, and a firewall has brought it here."""

    def __init__(
        self,
        host: str,
        port: int,
        success_reply: bytes,
        failure_reply: Callable[[str], bytes] | None,
        early: bytes = b"",
        login: tuple[str, str] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.success_reply = success_reply
        self.failure_reply = failure_reply
        self.early = early
        self.login = login

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"<request for {self}>"


class RejectedRequest(NamedTuple):
    """The answer to a client that gets no stream, before one was dialed."""

    last: bytes | None
    """The last bytes for the client; ``None`` to reset it."""
    problem: str
    """The problem, for the log; empty if it is not worth a line."""
    reason: str = "denied"
    """The word for it in the connection's record."""
    guessed: bool = False
    """``True`` for a wrong user or password: the client may be guessing."""


Factory = TypeVar("Factory", bound=Callable[..., Any])


class Stream:
    """A kernel socket with the facts about its transport: plain data, but for its close.

    :param socket: a connected stream socket, or a non-blocking one whose connect is in progress. The stream owns it.
        Dialers give a :class:`~relay.streams.session_socket.SessionSocket` to the engine that asked for one.
    :param half_close: whether its transport can end one direction alone (TCP, Unix and TLS can; SAM cannot).
    :param target: its name in records and log lines, such as ``db.internal:5432``.
    :param failure: called without argument at the end of file; returns an exception if that end was a failure (a lost
        carrier, a truncated TLS stream) and ``None`` if it was a clean one. Must not block.
    :param on_close: called without argument, exactly once, when the stream is over, on a thread that may block.
    :raises TypeError: if ``socket`` is not a :class:`socket.socket`, or is an :class:`ssl.SSLSocket`: the engine would
        move its bytes past the encryption.

    """

    __slots__ = (
        "socket",
        "half_close",
        "target",
        "failure",
        "on_close",
        "answered",
        "received",
        "unsent",
        "drained",
        "settle",
        "denied",
        "request",
        "identity",
        "is_introduced",
        "tls",
        "server_name",
        "path",
    )

    def __init__(
        self,
        socket: sockets.socket,
        *,
        half_close: bool = True,
        target: str | None = None,
        failure: Callable[[], BaseException | None] | None = None,
        on_close: Callable[[], object] | None = None,
    ) -> None:
        if not isinstance(socket, (sockets.socket, SessionSocket)) or is_tls(socket):
            kind = type(socket).__name__
            raise TypeError(f"socket: expected a plain socket.socket, got {kind}")
        self.socket = socket
        self.half_close = half_close
        self.target = target
        self.failure = failure
        self.on_close = on_close
        # Set by transports and read by the engine, which sets the first two.
        self.answered = True  # False until the first byte, if being connected proves no peer
        self.received: Callable[[], int] | None = None  # bytes that came from it so far, while it is relayed
        self.unsent: Callable[[], int] | None = None  # bytes that left the socket and wait in its transport
        # Calls what it is given, from any thread, once all that was sent has left this process after the end of output,
        # or never will; ``None`` if the kernel alone moves it.
        self.drained: Callable[[Callable[[], object]], object] | None = None
        self.settle = 0.0  # seconds after an end of file until ``failure`` knows what it was
        self.denied: Exception | None = None  # the reason to reject its client
        self.request: Request | None = None  # the request of its client, which is not answered yet
        self.identity: Identity | None = None  # who its client is, if its socket cannot tell
        self.tls: Any = None  # the session with its client: an ssl.SSLObject
        self.server_name: str | None = None  # the name that this client has asked for (SNI)
        self.is_introduced = False  # whether a header of the PROXY protocol was sent under its session
        self.path: StreamPath | None = None  # None for a connect without hops

    @property
    def is_withdrawn(self) -> bool:
        """True if its target gets no new clients now: it is one of several, and was disabled or is down."""
        # Asked of what is called at its end, which only streams of several targets have: all others carry no field for
        # it.
        is_withdrawn = getattr(self.on_close, "is_withdrawn", None)
        return is_withdrawn is not None and bool(is_withdrawn())

    def fileno(self) -> int:
        """Return the descriptor of the socket; −1 once it is closed."""
        return self.socket.fileno()

    def queued(self) -> int:
        """Return how many sent bytes are still on this machine, as far as that is known; see :func:`unsent`.

        A number that changes means that bytes move. 0 means that the next machine has taken all of them.
        """
        beyond = self.unsent
        return unsent(self.socket) + (beyond() if beyond is not None else 0)

    def close(self) -> None:
        """Close the socket and call ``on_close``. Idempotent; may block if ``on_close`` does."""
        self.socket.close()
        # Taken first: a close from another thread, or from the callback itself, must not call it twice.
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def close_soon(self) -> None:
        """Close; the far end need not read what it has not read yet. Idempotent."""
        self.close()

    def reset(self) -> None:
        """Close, and reset the far end where the transport has resets. Idempotent."""
        reset(self.socket)
        self.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<relay.Stream to {self.target or 'a socket'}, descriptor {self.fileno()}>"


def nonblocking(factory: Factory) -> Factory:
    """Mark a factory that never blocks: a tunnel then calls it in its own thread, which saves a thread switch.

    :param factory: any callable that returns at once, for instance with a socket whose connect is in progress.
    :returns: the same callable.
    :raises TypeError: if it cannot carry the mark (a bound method can not: mark its function, or wrap it).
    """
    try:
        factory.nonblocking = True  # type: ignore[attr-defined]
    except AttributeError:
        raise TypeError(f"factory: {factory!r} cannot be marked; wrap it in a function or a lambda") from None
    return factory
