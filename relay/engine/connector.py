"""Makes the outgoing streams of a tunnel: in the relay thread where nothing can block, else on threads of its own."""

from __future__ import annotations

import errno
import functools
import logging
import math
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..addresses.printable import printable
from ..errors import RelayError
from ..eventloop.loop import Timer
from ..eventloop.sockets import Endpoint, connect_error, format_address, open_socket
from ..streams.adapter import as_stream
from ..streams.connect import SocketDialer
from ..streams.dialer import Dialer
from ..streams.promise import Cancellation
from ..streams.protocols import MakeSend
from ..streams.stream import Stream
from .attempt import Attempt, Plan, Recipient
from .connection import Connection
from .records import WarmFigures

if TYPE_CHECKING:  # most tunnels need no warm streams, and start faster without them
    from ..streams.peer_source import PeerSource
    from .relay_thread import RelayThread
    from .warm_pool import WarmPool

logger = logging.getLogger("relay")

MOST_CALLS = 1024  # calls of a factory at one time
_YOUNG = 0.005  # seconds that a call may take before its client is watched
_LONGEST = 2000  # characters of an error in the log; those of programs may be long
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


def reason_of(error: BaseException) -> str:
    """Return the reason for a record, given what a factory has raised."""
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


class Connector:
    """Makes the outgoing streams of one tunnel. Belongs to the relay thread, except :meth:`_run_call`.

    :param owner: the relay thread.
    :param factory: its ``make_send``.
    :param source: from which its streams come; see :class:`relay.Tunnel`.
    """

    def __init__(self, owner: RelayThread, factory: MakeSend, source: str | None = None) -> None:
        self._owner = owner
        self.loop = owner.loop
        self.workspace = owner.workspace
        self.workers = owner.workspace.workers
        self.warm: WarmPool | None = None  # None until streams are to be kept ready
        self._plan: Plan
        self._plan_for: Callable[[Connection], Plan] | None  # None if all clients have the same plan
        self.source: str | None
        self.set_factory(factory, source)
        self.calls = 0  # of the factory, under way
        self._young: list[Attempt] = []
        self._watch = Timer(owner.loop.timers, self._watch_clients)

    def set_factory(self, factory: MakeSend, source: str | None) -> None:
        """Make streams by this factory from now on; attempts that have begun go on with the old one.

        :param factory: makes the streams.
        :param source: from which they come; both have been checked.
        """
        self.source = source
        peers = None
        if source is not None:
            from ..streams.peer_source import PeerSource, bound_to

            made = bound_to(factory, source)
            factory, peers = (factory, made) if isinstance(made, PeerSource) else (made, None)
        plan = self._plan = Plan(factory, self.workspace, per_client=peers is not None)
        self._plan_for = None
        if peers is not None:
            self._plan_for = functools.partial(self._plan_for_peer, peers)
        elif plan.selects and isinstance(factory, Dialer):
            self._plan_for = functools.partial(self._plan_for_request, factory, plan)
        if self.warm is not None:
            self.warm.change_plan(plan, time.monotonic())

    def _plan_for_peer(self, peers: PeerSource, connection: Connection) -> Plan:
        return Plan(peers.dialer_for(connection.summary.who()), self.workspace)

    def _plan_for_request(self, factory: Dialer, plan: Plan, connection: Connection) -> Plan:
        chosen = factory.select(connection.request)
        return plan if chosen is factory else Plan(chosen, self.workspace)

    def keep_warm(self, count: int, seconds: float) -> None:
        """Keep streams ready for the next clients.

        :param count: how many; 0 for none.
        :param seconds: after which a stream is replaced that no client has used.
        """
        if self.warm is None:
            if not count:
                return
            from .warm_pool import WarmPool

            self.warm = WarmPool(self, self._owner, self._plan)
        self.warm.change(count, seconds, time.monotonic())

    def make_room(self, now: float) -> None:
        """Close some of them, because no descriptor is left for a client."""
        if self.warm is not None:
            self.warm.make_room(now)

    def warm_figures(self) -> WarmFigures | None:
        """Return the figures of the warm streams; ``None`` if there never were any. From any thread."""
        return None if self.warm is None else self.warm.figures()

    def after_fork(self) -> None:
        """Only close the descriptors, in a forked child."""
        self.workspace.abandon()
        if self.warm is not None:
            self.warm.after_fork()

    def connect(self, connection: Connection, now: float) -> None:
        """Make the outgoing stream of a connection, now or later."""
        if self.warm is not None and self.warm.give(connection, now):
            return
        plan = self._plan if self._plan_for is None else self._plan_for(connection)
        endpoint = plan.endpoint
        if endpoint is None:
            return self._attempt(connection, plan, now)
        connection.summary.target = plan.target
        try:
            made, status = self.open(endpoint)
        except OSError as error:
            return self.failed(connection, connect_error(str(plan.target), error), now)
        if status == 0:
            connection.open(made, None, self.workspace, now)
        elif status in (errno.EINPROGRESS, errno.EAGAIN):
            attempt = Attempt(self, connection, plan, _deadline(connection))
            connection.wait_for_target(attempt, now)
            connection.watch_client()
            attempt.go_on(made, endpoint, status, now)
        else:
            made.close()
            self.failed(connection, connect_error(str(plan.target), OSError(status, os.strerror(status))), now)

    def _attempt(self, connection: Connection, plan: Plan, now: float) -> None:
        """Begin to make a stream that takes more than a connect to one address."""
        connection.summary.target = connection.request if "destination" in plan.keywords else plan.target
        attempt = Attempt(self, connection, plan, _deadline(connection))
        connection.wait_for_target(attempt, now)
        # A call of a factory is watched by _watch_soon below: most return before a watch would pay for its system
        # calls.
        if connection.request is not None or plan.dialer is not None or plan.nonblocking:
            connection.watch_client()
        self.begin(attempt, now)

    def begin(self, attempt: Attempt, now: float) -> None:
        """Begin to make a stream, in the way of its plan."""
        plan = attempt.plan
        if plan.endpoints:
            attempt.race(plan.endpoints, now)
        elif isinstance(plan.dialer, SocketDialer):
            self._watch_soon(attempt, now)
            attempt.look_up(self.workspace.lookups, plan.dialer)
        elif plan.dialer is not None:
            dialer = plan.dialer
            if (sender := self._owner.entrance.sender) is not None and isinstance(attempt.connection, Connection):
                dialer = sender.over(dialer, attempt.connection)
            if attempt.is_warm or attempt.connection.request is not None:  # a reply would be sent before a refusal
                dialer = dialer.confirming()
            attempt.dial(dialer, now)
        elif plan.nonblocking:
            attempt.finished(self._outcome(self._bound(attempt)), now)
        else:
            self._call(attempt, self._bound(attempt), now)

    def open(self, endpoint: Endpoint) -> tuple[socket.SocketType, int]:
        """Start a connect; it gets the tunnel's spare descriptor if the system has no other one."""
        try:
            return open_socket(endpoint, socket.SocketType)
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR and self._owner.release_spare_fd():
                # Without this the client that was accepted with the last descriptor would fail for want of another one.
                return open_socket(endpoint, socket.SocketType)
            raise

    def failed(self, connection: Recipient, error: BaseException, now: float) -> None:
        """End a connection that gets no stream: log the error, and reset the client or send it a reply."""
        name, peer, reason = self._owner.name, format_address(connection.summary.peer), reason_of(error)
        log = functools.partial(self._owner.workspace.log_problem, reason)
        if reason == "factory_error":
            expected = isinstance(error, OSError)  # its text is enough; a bug needs the traceback
            text = printable(str(error) if expected else f"{type(error).__name__}: {error}", _LONGEST)
            trace = None if expected and not logger.isEnabledFor(logging.DEBUG) else error
            log("%s: the factory failed for the client %s: %s", name, peer, text, error=trace)
        else:
            log("%s: %s (client %s)", name, printable(str(error), _LONGEST), peer)
        connection.fail(reason, now)

    def close_stream(self, stream: Stream, clean: bool) -> None:
        """Close a stream that came too late, or reset it."""
        self._owner.close_stream(stream, clean)

    def too_late(self, connection: Recipient, plan: Plan) -> None:
        """Log why there was no stream in time, if the factory knows."""
        problem = plan.dialer.last_error if plan.dialer is not None else None
        if problem is not None:
            name, peer = self._owner.name, format_address(connection.summary.peer)
            text = "%s: %s: not connected in time: %s (client %s)"
            self._owner.workspace.log_problem("connect_timeout", text, name, plan.target, problem, peer)

    # -- calls that may block -------------------------------------------------------------------------------------

    def _bound(self, attempt: Attempt) -> Callable[[], Any]:
        connection, keywords = attempt.connection, attempt.plan.keywords
        given: dict[str, Any] = {}
        if "peer" in keywords:
            given["peer"] = connection.summary.peer
        if "identity" in keywords:
            given["identity"] = connection.summary.who()
        if "destination" in keywords:
            given["destination"] = connection.request
        if "deadline" in keywords:
            given["deadline"] = attempt.deadline
        if "cancel" in keywords:
            given["cancel"] = attempt.cancel = Cancellation()
        factory = attempt.plan.factory
        return functools.partial(factory, **given) if given else factory

    def _outcome(self, function: Callable[[], Any]) -> Any:
        """Call a function; return its result as a stream, or the exception."""
        try:
            return as_stream(function())
        except BaseException as error:  # noqa: BLE001  (SystemExit included: a factory ends its own connection only)
            return error

    def _call(self, attempt: Attempt, function: Callable[[], Any], now: float) -> None:
        if attempt.is_warm:  # it must not keep clients out
            attempt.plan.warm_calls += 1
        else:
            self.calls += 1
            if self.calls >= self._owner.most_calls:
                self._owner.update_listening()
        self._watch_soon(attempt, now)
        self.workers.submit(functools.partial(self._run_call, attempt, function))

    def _watch_soon(self, attempt: Attempt, now: float) -> None:
        self._young.append(attempt)
        if self._watch.due == math.inf:
            self._watch.start(now + _YOUNG, now)

    def _watch_clients(self, now: float) -> None:
        """Watch the clients whose call takes longer than most; for a quick one this would not pay."""
        young, self._young = self._young, []
        for attempt in young:
            if attempt.connection.pending is attempt:
                attempt.connection.watch_client()

    def _run_call(self, attempt: Attempt, function: Callable[[], Any]) -> None:
        outcome = self._outcome(function)
        if attempt.cancel is not None:
            # In this thread, after the factory has returned: closed by the relay thread, the token could be waited for
            # by number when that belongs to another file.
            attempt.cancel.close()
        # The tunnel has ended: this stream has no other owner.
        if not self.loop.call(functools.partial(self._called, attempt, outcome)):
            _dispose(outcome)

    def _called(self, attempt: Attempt, outcome: Any) -> None:
        now = time.monotonic()
        if attempt.is_warm:
            attempt.plan.warm_calls -= 1
        else:
            self.calls -= 1
        if attempt.is_awaited():
            try:
                attempt.finished(outcome, now)
            except Exception as error:  # noqa: BLE001  (whatever it is, it ends this connection only)
                attempt.failed(error, now)
        elif isinstance(outcome, Stream):
            # The client has gone, and the stream is whole: it is closed and not reset. The factory's close may block.
            self.submit(outcome.close)
        if not self._owner.listening:
            self._owner.update_listening()

    def submit(self, job: Callable[[], object]) -> None:
        """Call ``job`` on a thread that may block."""
        self.workers.submit(functools.partial(self._run_job, job))

    def _run_job(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException:  # SystemExit included: it must not end the thread
            logger.exception("%s: closing a stream failed", self._owner.name)


def _deadline(connection: Connection) -> float | None:
    """Return when its stream must be connected, monotonic seconds; ``None`` for no limit."""
    limit = connection.limits.connect_limit
    return connection.summary.started + limit if limit is not None else None


def _dispose(outcome: Any) -> None:
    if isinstance(outcome, Stream):
        outcome.close()


def close_factory(factory: MakeSend, name: str) -> None:
    """Close a factory if it has a ``close``; what that raises is logged.

    :param name: of the tunnel, for the log.
    """
    close = None if isinstance(factory, type) else getattr(factory, "close", None)
    if callable(close):
        try:
            close()
        except Exception:
            logger.exception("%s: closing the factory failed", name)


def introduce_probes(make_send: MakeSend, send_proxy: str | None) -> None:
    """Let the probes of several targets begin with a header that says that they are relay's own, if clients' do."""
    if isinstance(make_send, Dialer) and make_send.alternatives:
        from ..access.proxy_header import build_local

        make_send.introduce_probes(b"" if send_proxy is None else build_local(send_proxy))
