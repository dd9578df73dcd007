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
from ..eventloop.loop import Loop, Timer
from ..eventloop.poller import OUT
from ..streams.cancellation import Cancellation
from ..streams.dialer import Dialed
from ..streams.fairness import source_of
from ..streams.happy_eyeballs import Direct, Endpoint, Race, connect_error, connect_patiently
from ..streams.lookups import Lookups, key_of
from ..streams.stream import Stream
from .connection import Connection
from .flow import Workspace

__all__ = ["Attempt", "Plan", "keywords_of"]


def keywords_of(factory: Callable[..., Any]) -> frozenset[str]:
    """Which of ``peer``, ``destination``, ``deadline`` and ``cancel`` a factory names; ``**kwargs`` alone: none."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(named & {"peer", "destination", "deadline", "cancel"})


class Plan:
    """How the streams of one factory are made.

    :param factory: a tunnel's ``make_send``, or what a :class:`Guide` leads to.
    """

    __slots__ = ("factory", "direct", "upgrade", "endpoints", "dialed", "nonblocking", "keywords", "target")

    def __init__(self, factory: Callable[..., Any]) -> None:
        self.factory = factory
        self.direct = factory if isinstance(factory, Direct) else None
        self.upgrade = self.direct.upgrade if self.direct is not None else None
        self.endpoints: Sequence[Endpoint] = ()
        if self.direct is not None and self.direct.literal:
            self.endpoints = self.direct.resolve()
        self.dialed = factory if isinstance(factory, Dialed) else None
        self.nonblocking = bool(getattr(factory, "nonblocking", False))
        self.keywords = frozenset() if self.direct or self.dialed else keywords_of(factory)
        self.target: str | None = getattr(factory, "target", None)


class Maker(Protocol):
    """The connector, as an attempt sees it."""

    loop: Loop
    workspace: Workspace

    def open(self, endpoint: Endpoint, /) -> tuple[socket.SocketType, int]:
        """Begin a connect."""

    def failed(self, connection: Connection, error: BaseException, now: float, /) -> None:
        """No stream can be made for a connection."""

    def too_late(self, connection: Connection, plan: Plan, /) -> None:
        """No stream was made in time."""

    def submit(self, job: Callable[[], object], /) -> None:
        """Have a job run on a thread that may block."""

    def let_go(self, stream: Stream, clean: bool) -> None:
        """Close a stream that came too late, or reset it."""


class Attempt:
    """What makes the outgoing stream of one connection. Belongs to the relay thread."""

    __slots__ = ("connection", "plan", "cancel", "_connector", "_race", "_running", "_timer", "_give_up")

    def __init__(self, connector: Maker, connection: Connection, plan: Plan) -> None:
        self.connection = connection
        self.plan = plan
        self.cancel: Cancellation | None = None
        self._connector = connector
        self._race: Race | None = None
        self._running: dict[int, tuple[socket.SocketType, Endpoint]] = {}
        self._timer: Timer | None = None
        self._give_up: Callable[[], object] | None = None  # what was begun: a dialed stream, an upgrade

    def deadline(self) -> float | None:
        """When the stream must be there, monotonic seconds."""
        making = self.connection.limits.making
        return self.connection.started + making if making is not None else None

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self._stop_racing()
        if self.cancel is not None:
            self.cancel.set()
        give_up, self._give_up = self._give_up, None
        if give_up is not None:
            give_up()

    def too_late(self) -> None:
        """The time for it is over."""
        self._connector.too_late(self.connection, self.plan)

    def is_wanted(self) -> bool:
        """Whether its connection still waits for it."""
        return self.connection.attempt is self

    def finished(self, outcome: Stream | BaseException, now: float) -> None:
        """A call has returned a stream, or raised."""
        if isinstance(outcome, BaseException):
            self._connector.failed(self.connection, outcome, now)
        else:
            self._begun_elsewhere(outcome, now)

    def look_up(self, lookups: Lookups, direct: Direct) -> None:
        """Have the target's addresses looked up, then connect."""
        connection, name = self.connection, direct.name
        source = source_of(connection.client, connection.peer)
        if name is None:
            give_up = lookups.find(direct, direct.resolve, source, self._looked_up)
        else:
            give_up = lookups.find(key_of(name.host), name.look_up, source, self._looked_up)
        if self.is_wanted():  # else there was no room for it
            self._give_up = give_up

    def _looked_up(self, found: Sequence[Endpoint] | BaseException, now: float) -> None:
        self._give_up = None
        direct = self.plan.direct
        assert direct is not None
        try:
            if direct.name is not None:
                found = direct.name.endpoints(found)
            if isinstance(found, BaseException):
                raise found
            self.race(found, now)
        except BaseException as error:  # noqa: BLE001  (whatever it is, it ends this connection only)
            self._connector.failed(self.connection, error, now)

    def dial(self, factory: Dialed, now: float) -> None:
        """Begin to make the stream; it is there at once, or another thread tells."""
        here = threading.get_ident()
        early: list[Stream | OSError] = []

        def done(outcome: Stream | OSError) -> None:
            if beginning and threading.get_ident() == here:
                early.append(outcome)
            else:
                self._told(outcome)

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

    def _begun_elsewhere(self, stream: Stream, now: float) -> None:
        sock = stream.socket
        connection = self.connection
        connection.target, connection.target_stream = sock, stream
        connection.name = stream.target or connection.name
        try:
            peer = sock.getpeername()
        except OSError:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ValueError("the factory returned a listening socket; return a connected one") from None
            self._connector.loop.watch(sock.fileno(), OUT, functools.partial(self._elsewhere, stream))
            self._running[sock.fileno()] = (sock, Endpoint(sock.family, stream.target))
        else:
            connection.name = connection.name or peer
            self._opened(sock, stream, now)

    def _elsewhere(self, stream: Stream, event: int, now: float) -> None:
        sock = stream.socket
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            if number:
                raise OSError(number, os.strerror(number))
            peer = sock.getpeername()
        except OSError as error:
            name = self.connection.name or "the target"
            if error.errno == errno.ENOTCONN:
                text = f"{name}: the factory returned a socket that is neither connected nor connecting"
                error = ConnectError(text, reason="factory_error")
            self._connector.failed(self.connection, connect_error(name, error), now)
        else:
            self.connection.name = self.connection.name or peer
            self._won(sock, stream, now)

    # -- a race that is run here ----------------------------------------------------------------------------------

    def race(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """Connect to the first address that answers."""
        self._race = Race(endpoints)
        self._timer = Timer(self._connector.loop.timers, self._next)
        self._next(now)

    def _next(self, now: float) -> None:
        race = self._race
        assert race is not None
        assert self._timer is not None
        while not self.connection.over and self._race is race and (endpoint := race.next(now)) is not None:
            try:
                made, status = self._connector.open(endpoint)
            except OSError as error:
                race.failed(error)
            else:
                self.begun(made, endpoint, status, now)
        if self.connection.over or self._race is not race:
            return
        if race.lost:
            self._connector.failed(self.connection, connect_error(str(self.plan.target), race.error), now)
        elif race.again is not None:
            self._timer.start(race.again, now)

    def begun(self, made: socket.SocketType, endpoint: Endpoint, status: int, now: float) -> None:
        """One connect has begun, and this is how."""
        if status == 0:
            self._won(made, None, now)
        elif status == errno.EINPROGRESS:
            self._running[made.fileno()] = (made, endpoint)
            self._connector.loop.watch(made.fileno(), OUT, functools.partial(self._connected, made, endpoint))
        elif status == errno.EAGAIN:
            self._connect_patiently(made, endpoint)
        else:
            made.close()
            self._lost(status, now)

    def _connected(self, made: socket.SocketType, endpoint: Endpoint, event: int, now: float) -> None:
        status = made.connect_ex(endpoint.address)
        if status in (errno.EALREADY, errno.EINPROGRESS):
            return
        self._connector.loop.forget(made.fileno())
        del self._running[made.fileno()]
        if status in (0, errno.EISCONN):
            self._won(made, None, now)
        else:
            made.close()
            self._lost(status, now)

    def _lost(self, status: int, now: float) -> None:
        error = OSError(status, os.strerror(status))
        if self._race is None:
            self._connector.failed(self.connection, connect_error(str(self.plan.target), error), now)
        else:
            self._race.failed(error)
            self._next(now)

    def _won(self, sock: socket.SocketType, stream: Stream | None, now: float) -> None:
        self._running.pop(sock.fileno(), None)
        self._connector.loop.forget(sock.fileno())
        self._stop_racing()
        if stream is None and self.plan.upgrade is not None:
            self._begin_upgrade(self.plan.upgrade, sock, now)
        else:
            self._opened(sock, stream, now)

    def _begin_upgrade(self, upgrade: Callable[..., Callable[[], object]], sock: socket.SocketType, now: float) -> None:
        # A stream is over a socket as users know them.
        made = Stream(socket.socket(sock.family, sock.type, sock.proto, sock.detach()), target=self.plan.target)
        made.socket.setblocking(False)
        try:
            self._give_up = upgrade(made, self.deadline(), self._told)
        except OSError as error:
            made.close()
            self._connector.failed(self.connection, error, now)

    def _told(self, outcome: Stream | OSError) -> None:
        """What was begun is done, or has failed; in any thread."""
        if not self._connector.loop.call(functools.partial(self._finish_begun, outcome)) and isinstance(
            outcome, Stream
        ):
            outcome.reset()

    def _finish_begun(self, outcome: Stream | OSError) -> None:
        self._give_up = None
        if self.is_wanted():
            self.finished(outcome, time.monotonic())
        elif isinstance(outcome, Stream):
            self._connector.let_go(outcome, clean=False)

    def _opened(self, sock: socket.SocketType, stream: Stream | None, now: float) -> None:
        self.connection.open(sock, stream, self._connector.workspace, now)

    def _stop_racing(self) -> None:
        loop = self._connector.loop
        self._race = None
        if self._timer is not None:
            self._timer.stop()
        for descriptor, (made, _) in self._running.items():
            loop.forget(descriptor)
            if made is not self.connection.target:
                loop.discard(made)
        self._running.clear()

    def _connect_patiently(self, made: socket.SocketType, endpoint: Endpoint) -> None:
        deadline = self.deadline()

        def connect() -> None:
            status = connect_patiently(made, endpoint, deadline)
            if not self._connector.loop.call(functools.partial(done, status)):
                made.close()

        def done(status: int) -> None:
            if not self.is_wanted():
                made.close()
            else:
                self.begun(made, endpoint, status, time.monotonic())

        self._connector.submit(connect)

    def after_fork(self) -> None:
        """Close a forked child's copies of the sockets."""
        for made, _ in self._running.values():
            made.close()

    def crashed(self, now: float) -> None:
        """A bug in a handler: end the connection."""
        self.connection.close("factory_error", now)
