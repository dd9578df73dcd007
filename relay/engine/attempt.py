"""One attempt to make the outgoing stream of a connection: a call of a factory, a race of connects, an upgrade."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import socket
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from ..errors import ConnectError
from ..eventloop.loop import Loop
from ..eventloop.poller import OUT
from ..eventloop.sockets import Endpoint, connect_error
from ..streams.connect import ConnectRace, SocketDialer
from ..streams.dialer import Dialer, Engine
from ..streams.lookups import Lookups
from ..streams.promise import Cancellation
from ..streams.protocols import MakeSend
from ..streams.stream import Request, Stream
from .limits import Pending
from .records import ConnectionSummary
from .workspace import Workspace

_KEYWORDS = {"peer", "identity", "destination", "deadline", "cancel"}


def keywords_of(factory: MakeSend) -> frozenset[str]:
    """Return which of these keywords a factory names; none for ``**kwargs``."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(named & _KEYWORDS)


class Plan:
    """The way in which the streams of one factory are made.

    :param factory: a tunnel's ``make_send``, or the dialer that it selects for a client.
    :param engine: the relay thread, which its streams may belong to; ``None`` if none is made.
    :param per_client: whether each client gets a plan of its own instead of this one.
    """

    __slots__ = (
        "factory", "dialer", "endpoints", "endpoint", "nonblocking", "keywords", "target", "warm_calls", "_per_client",
    )  # fmt: skip

    def __init__(self, factory: MakeSend, engine: Engine | None = None, *, per_client: bool = False) -> None:
        self.factory = factory
        self.dialer = factory if isinstance(factory, Dialer) else None
        if self.dialer is not None and engine is not None and not isinstance(factory, SocketDialer):
            self.dialer = self.dialer.on(engine)
        self.endpoints: Sequence[Endpoint] = factory.endpoints if isinstance(factory, SocketDialer) else ()
        self.endpoint = self.endpoints[0] if len(self.endpoints) == 1 else None  # the only one
        self.nonblocking = bool(getattr(factory, "nonblocking", False))
        self.keywords = frozenset() if self.dialer is not None else keywords_of(factory)
        self.target: str | None = getattr(factory, "target", None)
        self._per_client = per_client
        self.warm_calls = 0  # calls of the factory under way for streams without a client, given up or not

    @property
    def selects(self) -> bool:
        """True if the factory is a dialer that selects another one for each request."""
        return self.dialer is not None and type(self.dialer).select is not Dialer.select

    @property
    def needs_client(self) -> bool:
        """True if the stream depends on the client, so that none can be made before the client is there."""
        keywords = self.keywords
        return self._per_client or self.selects or not keywords.isdisjoint(("peer", "identity", "destination"))


class Recipient(Protocol):
    """The thing that a stream is made for: a connection, or a warm stream, whose client is not there yet."""

    summary: ConnectionSummary
    target: socket.SocketType | None
    target_stream: Stream | None
    pending: Pending | None

    @property
    def request(self) -> Request | None:
        """The request of a proxy client."""

    def source(self) -> Hashable:
        """Return the network of the client, so that none uses all look-ups."""

    def watch_client(self) -> None:
        """Watch for a reset of the client while the stream is being made."""

    def open(self, target: socket.SocketType, stream: Stream | None, work: Workspace, now: float) -> None:
        """Take the connected stream; ``None`` for a plain socket."""

    def fail(self, reason: str, now: float) -> None:
        """End, because there is no stream."""

    def close(self, reason: str, now: float) -> None:
        """End."""


class Maker(Protocol):
    """The connector, as an attempt sees it."""

    @property
    def loop(self) -> Loop:
        """The loop of the relay thread."""

    @property
    def workspace(self) -> Workspace:
        """The objects that all flows of the relay thread share."""

    def open(self, endpoint: Endpoint, /) -> tuple[socket.SocketType, int]:
        """Start a connect."""

    def failed(self, recipient: Recipient, error: BaseException, now: float, /) -> None:
        """End a recipient that gets no stream."""

    def too_late(self, recipient: Recipient, plan: Plan, /) -> None:
        """Log why no stream was made in time."""

    def submit(self, job: Callable[[], object], /) -> None:
        """Run a job on a thread that may block."""

    def close_stream(self, stream: Stream, clean: bool) -> None:
        """Close a stream that came too late, or reset it."""


class Attempt:
    """The making of one outgoing stream. Belongs to the relay thread.

    :param connector: the connector.
    :param connection: gets the stream.
    :param plan: how it is made.
    :param deadline: when it must be connected, monotonic seconds; ``None`` for no limit.
    """

    __slots__ = ("connection", "plan", "deadline", "cancel", "_connector", "_race", "_connecting", "_give_up")

    is_warm = False  # no client waits for it

    def __init__(self, connector: Maker, connection: Recipient, plan: Plan, deadline: float | None) -> None:
        self.connection = connection
        self.plan = plan
        self.deadline = deadline
        self.cancel: Cancellation | None = None
        self._connector = connector
        self._race: ConnectRace | None = None
        self._connecting = -1  # the descriptor of a connect that the factory has begun
        self._give_up: Callable[[], object] | None = None  # what was begun: a dialed stream, a look-up

    def abandon(self) -> None:
        """Give it up."""
        race, self._race = self._race, None
        if race is not None:
            race.give_up()
        if self._connecting >= 0:
            self._connector.loop.forget(self._connecting)
        if self.cancel is not None:
            self.cancel.set()
        give_up, self._give_up = self._give_up, None
        if give_up is not None:
            give_up()

    def too_late(self) -> None:
        """Log why it was not there in time, if that is known."""
        self._connector.too_late(self.connection, self.plan)

    def is_awaited(self) -> bool:
        """Return whether its connection still waits for it."""
        return self.connection.pending is self

    def finished(self, outcome: Stream | BaseException, now: float) -> None:
        """Take the stream that a call has returned, or the exception that it has raised."""
        if isinstance(outcome, BaseException):
            self.failed(outcome, now)
        else:
            self._on_stream(outcome, now)

    def failed(self, error: BaseException, now: float) -> None:
        """End, because there is no stream."""
        self._connector.failed(self.connection, error, now)

    def look_up(self, lookups: Lookups, dialer: SocketDialer) -> None:
        """Look up the target's addresses, then connect."""
        give_up = dialer.find(lookups, self.connection.source(), self._looked_up)
        if self.is_awaited():  # else there was no room for it
            self._give_up = give_up

    def _looked_up(self, found: Sequence[Endpoint] | BaseException, now: float) -> None:
        self._give_up = None
        if isinstance(found, BaseException):
            return self.failed(found, now)
        try:
            self.race(found, now)
        except BaseException as error:  # noqa: BLE001  (whatever it is, it ends this connection only)
            self.failed(error, now)

    def dial(self, factory: Dialer, now: float) -> None:
        """Start to dial; the stream is there at once, or comes later from another thread."""
        here = threading.get_ident()
        early: list[Stream | OSError] = []

        def done(outcome: Stream | OSError) -> None:
            # The outcome may come inside the call of dial(): what that returns, by which it could be given up, is not
            # known yet.
            if beginning and threading.get_ident() == here:
                early.append(outcome)
            else:
                self._on_result(outcome)

        beginning = True
        try:
            # No client waits for a warm stream: a lost carrier keeps its back-off.
            give_up = factory.dial(self.deadline, done, wait_for_reconnect=not self.is_warm)
        finally:
            beginning = False
        if early:
            self.finished(early[0], now)
        else:
            self._give_up = give_up

    # -- a stream that the factory made ---------------------------------------------------------------------------

    def _on_stream(self, stream: Stream, now: float) -> None:
        sock = stream.socket
        connection = self.connection
        connection.target, connection.target_stream = sock, stream
        connection.summary.target = stream.target or connection.summary.target
        if stream.path is not None and self.plan.dialer is not None:
            route = stream.path.route
            connection.summary.path = stream.path
            connection.summary.route = self.plan.dialer.route if route is None else route
        try:
            peer = sock.getpeername()
        except OSError:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ValueError("the factory returned a listening socket; return a connected one") from None
            self._connector.loop.watch(sock.fileno(), OUT, functools.partial(self._on_connected, stream))
            self._connecting = sock.fileno()
        else:
            connection.summary.target = connection.summary.target or peer
            connection.open(sock, stream, self._connector.workspace, now)

    def _on_connected(self, stream: Stream, event: int, now: float) -> None:
        sock = stream.socket
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            if number:
                raise OSError(number, os.strerror(number))
            peer = sock.getpeername()
        except OSError as error:
            name = self.connection.summary.target or "the target"
            if error.errno == errno.ENOTCONN:
                text = f"{name}: the factory returned a socket that is neither connected nor connecting"
                error = ConnectError(text, reason="factory_error")
            self.failed(connect_error(name, error), now)
        else:
            self.connection.summary.target = self.connection.summary.target or peer
            self._connecting = -1
            self._connector.loop.forget(sock.fileno())
            self.connection.open(sock, stream, self._connector.workspace, now)

    # -- a race on the relay thread ----------------------------------------------------------------------------------

    def race(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """Connect to the first address that answers."""
        self._new_race().start(endpoints, now)

    def go_on(self, made: socket.SocketType, endpoint: Endpoint, status: int, now: float) -> None:
        """Go on with a connect to the only address, which was begun already."""
        self._new_race().go_on(made, endpoint, status, now)

    def _new_race(self) -> ConnectRace:
        connector = self._connector
        race = self._race = ConnectRace(connector.loop, connector.open, connector.submit, self.deadline, self._raced)
        return race

    def _raced(self, outcome: socket.SocketType | OSError, now: float) -> None:
        self._race = None
        if isinstance(outcome, OSError):
            self.failed(connect_error(str(self.plan.target), outcome), now)
        else:
            self.connection.open(outcome, None, self._connector.workspace, now)

    # -- a stream that comes later --------------------------------------------------------------

    def _on_result(self, outcome: Stream | OSError) -> None:
        """Pass the outcome to the relay thread; from any thread."""
        if self._connector.loop.is_here():
            return self._finish_begun(outcome)
        if not self._connector.loop.call(functools.partial(self._finish_begun, outcome)) and isinstance(
            outcome, Stream
        ):
            outcome.reset()
        return None

    def _finish_begun(self, outcome: Stream | OSError) -> None:
        self._give_up = None
        if self.is_awaited():
            now = time.monotonic()
            try:
                self.finished(outcome, now)
            except Exception as error:  # noqa: BLE001  (whatever it is, it ends this connection only)
                self.failed(error, now)
        elif isinstance(outcome, Stream):
            self._connector.close_stream(outcome, clean=False)

    def after_fork(self) -> None:
        """Close the sockets, in a forked child."""
        if self._race is not None:
            self._race.after_fork()

    def crashed(self, now: float) -> None:
        """End the connection after a bug in a handler."""
        self.connection.close("factory_error", now)
