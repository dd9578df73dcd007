"""One attempt to make the outgoing stream of a connection: a call of a factory, a race of connects, an upgrade."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..errors import ConnectError
from ..eventloop.loop import Loop
from ..eventloop.poller import OUT
from ..eventloop.sockets import Endpoint, connect_error
from ..streams.cancellation import Cancellation
from ..streams.connect import ConnectRace, SocketDialer
from ..streams.dialer import Dialer
from ..streams.fairness import source_of
from ..streams.lookups import Lookups, key_of
from ..streams.stream import Stream
from .connection import Connection
from .workspace import Workspace

__all__ = ["Attempt", "Plan", "keywords_of"]


def keywords_of(factory: Callable[..., Any]) -> frozenset[str]:
    """Return which of ``peer``, ``destination``, ``deadline`` and ``cancel`` a factory names; none for ``**kwargs``."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(named & {"peer", "destination", "deadline", "cancel"})


class Plan:
    """The way in which the streams of one factory are made.

    :param factory: a tunnel's ``make_send``, or the dialer that it selects for a client.
    """

    __slots__ = ("factory", "dialer", "endpoints", "endpoint", "nonblocking", "keywords", "target")

    def __init__(self, factory: Callable[..., Any]) -> None:
        self.factory = factory
        self.dialer = factory if isinstance(factory, Dialer) else None
        self.endpoints: Sequence[Endpoint] = factory.endpoints if isinstance(factory, SocketDialer) else ()
        self.endpoint = self.endpoints[0] if len(self.endpoints) == 1 else None  # the only one
        self.nonblocking = bool(getattr(factory, "nonblocking", False))
        self.keywords = frozenset() if self.dialer is not None else keywords_of(factory)
        self.target: str | None = getattr(factory, "target", None)


class Maker(Protocol):
    """The connector, as an attempt sees it."""

    loop: Loop
    workspace: Workspace

    def open(self, endpoint: Endpoint, /) -> tuple[socket.SocketType, int]:
        """Start a connect."""

    def failed(self, connection: Connection, error: BaseException, now: float, /) -> None:
        """End a connection that gets no stream."""

    def too_late(self, connection: Connection, plan: Plan, /) -> None:
        """Log why no stream was made in time."""

    def submit(self, job: Callable[[], object], /) -> None:
        """Run a job on a thread that may block."""

    def close_stream(self, stream: Stream, clean: bool) -> None:
        """Close a stream that came too late, or reset it."""


class Attempt:
    """The making of the outgoing stream of one connection. Belongs to the relay thread."""

    __slots__ = ("connection", "plan", "cancel", "_connector", "_race", "_connecting", "_give_up")

    def __init__(self, connector: Maker, connection: Connection, plan: Plan) -> None:
        self.connection = connection
        self.plan = plan
        self.cancel: Cancellation | None = None
        self._connector = connector
        self._race: ConnectRace | None = None
        self._connecting = -1  # the descriptor of a connect that the factory has begun
        self._give_up: Callable[[], object] | None = None  # what was begun: a dialed stream, a look-up

    def deadline(self) -> float | None:
        """Return when the stream must be connected, monotonic seconds; ``None`` for no limit."""
        limit = self.connection.deadline.limits.connect_limit
        return self.connection.summary.started + limit if limit is not None else None

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
            self._connector.failed(self.connection, outcome, now)
        else:
            self._on_stream(outcome, now)

    def look_up(self, lookups: Lookups, dialer: SocketDialer) -> None:
        """Look up the target's addresses, then connect."""
        connection, name = self.connection, dialer.name
        source = source_of(connection.client, connection.summary.peer)
        if name is None:
            give_up = lookups.find(dialer, dialer.resolve, source, self._looked_up)
        else:
            give_up = lookups.find(key_of(name.host), name.look_up, source, self._looked_up)
        if self.is_awaited():  # else there was no room for it
            self._give_up = give_up

    def _looked_up(self, found: Sequence[Endpoint] | BaseException, now: float) -> None:
        self._give_up = None
        dialer = self.plan.dialer
        assert isinstance(dialer, SocketDialer)
        try:
            if dialer.name is not None:
                found = dialer.name.endpoints(found)
            if isinstance(found, BaseException):
                raise found
            self.race(found, now)
        except BaseException as error:  # noqa: BLE001  (whatever it is, it ends this connection only)
            self._connector.failed(self.connection, error, now)

    def dial(self, factory: Dialer, now: float) -> None:
        """Start to dial; the stream is there at once, or comes later from another thread."""
        here = threading.get_ident()
        early: list[Stream | OSError] = []

        def done(outcome: Stream | OSError) -> None:
            if beginning and threading.get_ident() == here:
                early.append(outcome)
            else:
                self._on_result(outcome)

        beginning = True
        try:
            give_up = factory.dial(self.deadline(), done)
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
            connection.summary.path, connection.summary.route = stream.path, self.plan.dialer.route
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
            self._connector.failed(self.connection, connect_error(name, error), now)
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
        race = self._race = ConnectRace(connector.loop, connector.open, connector.submit, self.deadline(), self._raced)
        return race

    def _raced(self, outcome: socket.SocketType | OSError, now: float) -> None:
        self._race = None
        if isinstance(outcome, OSError):
            self._connector.failed(self.connection, connect_error(str(self.plan.target), outcome), now)
        else:
            self.connection.open(outcome, None, self._connector.workspace, now)

    # -- a stream that comes later --------------------------------------------------------------

    def _on_result(self, outcome: Stream | OSError) -> None:
        """Pass the outcome to the relay thread; from any thread."""
        if not self._connector.loop.call(functools.partial(self._finish_begun, outcome)) and isinstance(
            outcome, Stream
        ):
            outcome.reset()

    def _finish_begun(self, outcome: Stream | OSError) -> None:
        self._give_up = None
        if self.is_awaited():
            self.finished(outcome, time.monotonic())
        elif isinstance(outcome, Stream):
            self._connector.close_stream(outcome, clean=False)

    def after_fork(self) -> None:
        """Close the sockets, in a forked child."""
        if self._race is not None:
            self._race.after_fork()

    def crashed(self, now: float) -> None:
        """End the connection after a bug in a handler."""
        self.connection.close("factory_error", now)
