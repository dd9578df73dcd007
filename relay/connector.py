"""Makes the outgoing streams of a tunnel: in the relay thread where nothing can block, else on threads of its own."""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .bridge import as_stream
from .errors import ConnectError, RelayError
from .loop import Timer
from .poller import OUT
from .race import Direct, Endpoint, Race, connect_error, connect_patiently, open_socket, place
from .stream import Stream
from .workers import Workers

if TYPE_CHECKING:
    from .connection import Connection
    from .tunnel import Tunnel

__all__ = ["MOST_CALLS", "Connector", "keywords_of", "reason_of"]

logger = logging.getLogger("relay")

MOST_CALLS = 1024  # calls of a factory at one time
_YOUNG = 0.005  # seconds that a call may take before its client is watched
_NOT_OURS = (errno.EMFILE, errno.ENFILE)


def keywords_of(factory: Callable[..., Any]) -> frozenset[str]:
    """Which of ``peer``, ``deadline`` and ``cancel`` a factory names; ``**kwargs`` alone names none."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(named & {"peer", "deadline", "cancel"})


def reason_of(error: BaseException) -> str:
    """The word for what a factory raised."""
    if isinstance(error, RelayError):
        return getattr(error, "reason", "factory_error")
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, TimeoutError):
        return "connect_timeout"
    if isinstance(error, (socket.gaierror, FileNotFoundError)):
        return "unreachable"
    if isinstance(error, OSError) and error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return "unreachable"
    return "factory_error"


class Cancellation:
    """Tells a factory that nobody waits for its stream any more; its descriptor is made when it is asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._pipe: tuple[int, int] | None = None

    def is_set(self) -> bool:
        """Whether the attempt was given up."""
        return self._set

    def fileno(self) -> int:
        """A descriptor that becomes readable when the attempt is given up; valid until the factory returns."""
        with self._lock:
            if self._pipe is None:
                self._pipe = os.pipe()
                if self._set:
                    os.write(self._pipe[1], b"\0")
            return self._pipe[0]

    def set(self) -> None:
        """Give the attempt up."""
        with self._lock:
            was_set, self._set = self._set, True  # first, for whoever is woken looks at it
            if not was_set and self._pipe is not None:
                os.write(self._pipe[1], b"\0")

    def close(self) -> None:
        """The factory has returned."""
        with self._lock:
            if self._pipe is not None:
                os.close(self._pipe[0])
                os.close(self._pipe[1])
                self._pipe = None
            self._set = True


class Connector:
    """The way out of one tunnel. Belongs to the relay thread, but for what runs in :meth:`_run_call`.

    :param tunnel: whose.
    :param factory: its ``make_send``.
    """

    def __init__(self, tunnel: Tunnel, factory: Callable[..., Any]) -> None:
        self._tunnel = tunnel
        self._factory = factory
        self._keywords = keywords_of(factory)
        self._direct = factory if isinstance(factory, Direct) else None
        self.upgrade = self._direct.upgrade if self._direct is not None else None
        self._endpoints: Sequence[Endpoint] = ()
        if self._direct is not None and self._direct.literal:
            self._endpoints = self._direct.resolve()
        self._nonblocking = bool(getattr(factory, "nonblocking", False))
        self.target: str | None = getattr(factory, "target", None)
        self.calls = 0  # of the factory, under way
        self._young: list[Attempt] = []
        self._watch = Timer(tunnel.loop.timers, self._watch_clients)
        self.workers = Workers(tunnel.loop, f"{tunnel.name} connector")

    def connect(self, connection: Connection, now: float) -> None:
        """Make the outgoing stream of a connection, now or later."""
        connection.name = self.target
        if len(self._endpoints) == 1 and self.upgrade is None:
            return self._connect_at_once(connection, self._endpoints[0], now)
        attempt = connection.attempt = Attempt(self, self._tunnel, connection)
        connection.wait_for_target(now)
        if self._endpoints:
            connection.watch_client()
            attempt.race(self._endpoints, now)
        elif self._direct is not None:
            self._call(attempt, self._direct.resolve, now)
        elif self._nonblocking:
            connection.watch_client()
            attempt.finished(self._outcome(self._bound(attempt)), now)
        else:
            self._call(attempt, self._bound(attempt), now)

    def _connect_at_once(self, connection: Connection, endpoint: Endpoint, now: float) -> None:
        try:
            made, status = self.open(endpoint)
        except OSError as error:
            self.failed(connection, connect_error(str(self.target), error), now)
            return
        if status == 0:
            connection.open(made, None, self._tunnel.workspace, now)
        elif status in (errno.EINPROGRESS, errno.EAGAIN):
            attempt = connection.attempt = Attempt(self, self._tunnel, connection)
            connection.wait_for_target(now)
            connection.watch_client()
            attempt.begun(made, endpoint, status, now)
        else:
            made.close()
            self.failed(connection, connect_error(str(self.target), OSError(status, os.strerror(status))), now)

    def open(self, endpoint: Endpoint) -> tuple[socket.SocketType, int]:
        """Begin a connect; the tunnel's spare descriptor is spent on it where there is no other."""
        try:
            return open_socket(endpoint, socket.SocketType)
        except OSError as error:
            if error.errno in _NOT_OURS and self._tunnel.spend_spare():
                return open_socket(endpoint, socket.SocketType)
            raise

    def failed(self, connection: Connection, error: BaseException, now: float) -> None:
        """There will be no stream: reset the client, and say why."""
        name, peer, reason = self._tunnel.name, place(connection.peer), reason_of(error)
        if reason == "factory_error":
            logger.error("%s: the factory failed for the client %s", name, peer, exc_info=error)
        else:
            logger.warning("%s: %s (client %s)", name, error, peer)
        connection.close(reason, now)

    # -- calls that may block -------------------------------------------------------------------------------------

    def _bound(self, attempt: Attempt) -> Callable[[], Any]:
        connection, keywords = attempt.connection, self._keywords
        given: dict[str, Any] = {}
        if "peer" in keywords:
            given["peer"] = connection.peer
        if "deadline" in keywords:
            given["deadline"] = attempt.deadline()
        if "cancel" in keywords:
            given["cancel"] = attempt.cancel = Cancellation()
        return functools.partial(self._factory, **given) if given else self._factory

    def _outcome(self, function: Callable[[], Any]) -> Any:
        """Call, and return what it returned as a stream (or as addresses), or the exception."""
        try:
            result = function()
            return result if self._direct is not None else as_stream(result)
        except BaseException as error:  # noqa: BLE001  (SystemExit included: a factory ends its own connection only)
            return error

    def _call(self, attempt: Attempt, function: Callable[[], Any], now: float) -> None:
        self.calls += 1
        self._young.append(attempt)
        if self._watch.due == math.inf:
            self._watch.start(now + _YOUNG, now)
        self.workers.submit(functools.partial(self._run_call, attempt, function))

    def _watch_clients(self, now: float) -> None:
        """Watch the clients whose call takes longer than most; for a quick one it would cost more than it tells."""
        young, self._young = self._young, []
        for attempt in young:
            if attempt.connection.attempt is attempt:
                attempt.connection.watch_client()

    def _run_call(self, attempt: Attempt, function: Callable[[], Any]) -> None:
        outcome = self._outcome(function)
        if attempt.cancel is not None:
            attempt.cancel.close()
        if not self._tunnel.loop.call(functools.partial(self._called, attempt, outcome)):
            _dispose(outcome)

    def _called(self, attempt: Attempt, outcome: Any) -> None:
        now = time.monotonic()
        self.calls -= 1
        if not attempt.connection.over:
            try:
                attempt.finished(outcome, now)
            except Exception as error:  # noqa: BLE001  (whatever it is, it ends this connection only)
                self.failed(attempt.connection, error, now)
        elif isinstance(outcome, Stream):
            self.submit(outcome.close)
        if not self._tunnel.listening:
            self._tunnel.update_listening()

    def submit(self, job: Callable[[], object]) -> None:
        """Have ``job`` called on a thread that may block."""
        self.workers.submit(functools.partial(self._run_job, job))

    def _run_job(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException:  # SystemExit included: it must not end the thread
            logger.exception("%s: closing a stream failed", self._tunnel.name)


class Attempt:
    """What makes the outgoing stream of one connection. Belongs to the relay thread."""

    __slots__ = ("connection", "cancel", "_connector", "_tunnel", "_race", "_running", "_timer", "_give_up")

    def __init__(self, connector: Connector, tunnel: Tunnel, connection: Connection) -> None:
        self.connection = connection
        self.cancel: Cancellation | None = None
        self._connector = connector
        self._tunnel = tunnel
        self._race: Race | None = None
        self._running: dict[int, tuple[socket.SocketType, Endpoint]] = {}
        self._timer: Timer | None = None
        self._give_up: Callable[[], object] | None = None  # the upgrade

    def deadline(self) -> float | None:
        """When the stream must be there, monotonic seconds."""
        making = self.connection.limits.making
        return self.connection.started + making if making is not None else None

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self._stop_racing()
        if self.cancel is not None:
            self.cancel.set()
        if self._give_up is not None:
            self._give_up()

    def finished(self, outcome: Any, now: float) -> None:
        """A call has returned a stream or addresses, or raised."""
        if isinstance(outcome, BaseException):
            self._connector.failed(self.connection, outcome, now)
        elif isinstance(outcome, Stream):
            self._begun_elsewhere(outcome, now)
        else:
            self.race(outcome, now)

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
                raise ValueError("the factory returned a socket that listens; a connected one is wanted") from None
            self._tunnel.loop.watch(sock.fileno(), OUT, functools.partial(self._elsewhere, stream))
            self._running[sock.fileno()] = (sock, Endpoint(sock.family, stream.target))
        else:
            connection.name = connection.name or (place(peer) or None)
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
            self.connection.name = self.connection.name or (place(peer) or None)
            self._won(sock, stream, now)

    # -- a race that is run here ----------------------------------------------------------------------------------

    def race(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """Connect to the first address that answers."""
        self._race = Race(endpoints)
        self._timer = Timer(self._tunnel.loop.timers, self._next)
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
            self._connector.failed(self.connection, connect_error(str(self._connector.target), race.error), now)
        elif race.again is not None:
            self._timer.start(race.again, now)

    def begun(self, made: socket.SocketType, endpoint: Endpoint, status: int, now: float) -> None:
        """One connect has begun, and this is how."""
        if status == 0:
            self._won(made, None, now)
        elif status == errno.EINPROGRESS:
            self._running[made.fileno()] = (made, endpoint)
            self._tunnel.loop.watch(made.fileno(), OUT, functools.partial(self._connected, made, endpoint))
        elif status == errno.EAGAIN:
            self._connect_patiently(made, endpoint)
        else:
            made.close()
            self._lost(status, now)

    def _connected(self, made: socket.SocketType, endpoint: Endpoint, event: int, now: float) -> None:
        status = made.connect_ex(endpoint.address)
        if status in (errno.EALREADY, errno.EINPROGRESS):
            return
        self._tunnel.loop.forget(made.fileno())
        del self._running[made.fileno()]
        if status in (0, errno.EISCONN):
            self._won(made, None, now)
        else:
            made.close()
            self._lost(status, now)

    def _lost(self, status: int, now: float) -> None:
        error = OSError(status, os.strerror(status))
        if self._race is None:
            self._connector.failed(self.connection, connect_error(str(self._connector.target), error), now)
        else:
            self._race.failed(error)
            self._next(now)

    def _won(self, sock: socket.SocketType, stream: Stream | None, now: float) -> None:
        self._running.pop(sock.fileno(), None)
        self._tunnel.loop.forget(sock.fileno())
        self._stop_racing()
        if stream is None and self._connector.upgrade is not None:
            self._begin_upgrade(self._connector.upgrade, sock, now)
        else:
            self._opened(sock, stream, now)

    def _begin_upgrade(self, upgrade: Callable[..., Callable[[], object]], sock: socket.SocketType, now: float) -> None:
        # A stream is over a socket as users know them.
        made = Stream(socket.socket(sock.family, sock.type, sock.proto, sock.detach()), target=self._connector.target)
        made.socket.setblocking(False)
        try:
            self._give_up = upgrade(made, self.deadline(), self._upgraded)
        except OSError as error:
            made.close()
            self._connector.failed(self.connection, error, now)

    def _upgraded(self, outcome: Stream | OSError) -> None:
        """The upgrade is done, or has failed; in any thread."""
        if not self._tunnel.loop.call(functools.partial(self._finish_upgrade, outcome)) and isinstance(outcome, Stream):
            outcome.reset()

    def _finish_upgrade(self, outcome: Stream | OSError) -> None:
        self._give_up = None
        if not self.connection.over:
            self.finished(outcome, time.monotonic())
        elif isinstance(outcome, Stream):
            self._tunnel.let_go(outcome, clean=False)

    def _opened(self, sock: socket.SocketType, stream: Stream | None, now: float) -> None:
        self.connection.open(sock, stream, self._tunnel.workspace, now)

    def _stop_racing(self) -> None:
        loop = self._tunnel.loop
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
            if not self._tunnel.loop.call(functools.partial(done, status)):
                made.close()

        def done(status: int) -> None:
            if self.connection.over:
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


def _dispose(outcome: Any) -> None:
    if isinstance(outcome, Stream):
        outcome.close()
