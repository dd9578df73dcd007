"""Dialers: factories that return at once and call back later, so that a tunnel needs no thread for each stream."""

from __future__ import annotations

import copy
import functools
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

from ..addresses.hops import Command, Hop, Route
from ..addresses.i2p import I2PTarget
from ..addresses.values import Target
from ..errors import ConnectError
from ..eventloop.background import Home
from .lookups import Lookups
from .promise import Abort, CallbackChain, Cancel, OnResult, Promise
from .source import Source
from .stream import HANDSHAKE, Request, Stream, StreamPath
from .trace import SILENT, Trace

logger = logging.getLogger("relay")

BeginUpgrade = Callable[[Stream, float | None, OnResult], Abort]
BeginUpgradeOn = Callable[[Home, Stream, float | None, OnResult], Abort]


class Engine(Home, Protocol):
    """The relay thread of a tunnel, as dialers see it."""

    lookups: Lookups
    """Its look-ups of names."""


class Dialer:
    """A factory whose streams are made without blocking; :func:`relay.target` and its kind return one.

    :param target: the name of the target in records, such as ``db.internal:5432``.
    """

    route: Route = ()
    """The hops on the route, the nearest first."""

    alternatives: Sequence[Dialer] = ()
    """The dialers of the targets among which it chooses, if it has several."""

    per_route: Sequence[Dialer] = ()
    """The dialers that hold the shared connections, if its clients choose where it leads."""

    trace: Trace = SILENT
    """The observer of the steps of each dial."""

    def __init__(self, target: str) -> None:
        self.target = target

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Begin to make a stream. Never blocks.

        :param deadline: monotonic seconds, or ``None`` for as long as it takes.
        :param done: called once, in any thread, perhaps before this returns, with the stream or with the error.
        :param self_contained: whether the caller uses the socket alone, and neither ``failure`` nor ``on_close`` of the
            stream: a target that refuses is then an error here, and closing the socket releases what is under it.
        :param wait_for_reconnect: whether to wait, until the deadline, while a lost connection is re-established.
        :returns: gives the attempt up: ``done`` is not called after that, and nothing is left.
        """
        raise NotImplementedError

    def select(self, request: Request | None) -> Dialer:
        """Return the dialer for what a proxy's client asks for: this one, unless it makes a difference. Never blocks.

        :param request: ``None`` if the clients of the listener make none.
        :raises OSError: if the client cannot have a stream.
        """
        return self

    def bound(self, source: Source) -> Dialer:
        """Return a dialer of the same target whose connections come from an address of this machine.

        :param source: the address.
        :raises ValueError: if this machine does not connect to the target itself, or not over TCP, or not from there.
        """
        raise ValueError(
            f"source: relay does not connect to {self.target} over TCP itself; it needs a target by host and port, "
            "without hops"
        )

    def always_bound(self, source: Source) -> Dialer:
        """Return a dialer as :meth:`bound` does, for an address that does not depend on the client.

        :param source: the address.
        :raises ValueError: as :meth:`bound` does.
        """
        return self.bound(source)

    introduces = False
    """Whether a header of the PROXY protocol goes under a session of its streams; see :meth:`introducing`."""

    def introducing(self, header: bytes) -> Dialer:
        """Return a dialer of the same target that sends a header below the session of the stream.

        So receivers expect it: before the handshake of TLS. The streams of this one are then ``is_introduced``.

        :param header: the bytes.
        """
        return self

    def introduce_probes(self, header: bytes) -> None:
        """Begin each probe of relay's own, if it has any, with a header of the PROXY protocol; see :func:`introduced`.

        :param header: the bytes; none for no header.
        """

    def confirming(self) -> Dialer:
        """Return a dialer of the same target that gives a stream only once the target, or its hop, has accepted it.

        For callers that promise their clients an answer, or try another target. Others may get the stream earlier,
        which saves a round trip: its ``failure`` then returns why there is none.
        """
        return self

    def on(self, engine: Engine) -> Dialer:
        """Return a dialer for an engine that dials, reads and writes every stream in one thread only.

        It makes a stream in that thread, where that spares others; the stream may have a
        :class:`~relay.streams.session_socket.SessionSocket` then.

        :param engine: that thread.
        """
        return self

    def __call__(self, *, peer: Any = None, deadline: float | None = None, cancel: Cancel | None = None) -> Stream:
        """Dial, and wait for the stream.

        :param peer: the client's address; it changes nothing here.
        :param deadline: monotonic seconds; until then a call waits for a lost connection on the route. ``None`` for one
            attempt without a limit.
        :param cancel: gives the attempt up when set.
        :returns: a connected stream.
        :raises ConnectError: refused, unreachable, timed out, denied or given up; ``.reason`` tells.
        :raises RelayError: why a hop on the route cannot be used: its host key, the credentials.
        """
        return self._wait(deadline, cancel, wait_for_reconnect=deadline is not None)

    def open_socket(self, deadline: float | None) -> socket.socket:
        """Dial a stream and return its socket; closing it releases what is under it. One attempt.

        Until it is used again, the dialer then holds a shared connection only as long as its streams are open.

        :param deadline: monotonic seconds, or ``None`` for as long as it takes.
        :returns: a connected, non-blocking socket.
        :raises OSError: as a call does.
        """
        try:
            return self._wait(deadline, None, wait_for_reconnect=False).socket
        finally:
            self.close_when_idle()

    @property
    def state(self) -> str:
        """The state of the shared connection: ``connecting``, ``up``, ``backing off``, ``failed`` or ``closed``.

        It is ``up`` where each stream has a connection of its own. Dialers that share a connection have the same state,
        also those that have not been used yet.
        """
        return "up"

    @property
    def last_error(self) -> str | None:
        """The reason that there is no shared connection, if there is one and it is known."""
        return None

    def subscribe(self, watcher: Callable[[Any, Exception | None], object]) -> None:
        """Call ``watcher(state, error)`` at each change of the shared connection; it must not block.

        :raises OSError: if no thread or descriptor is available.
        """

    def ready(self, timeout: float | None = 30.0) -> None:
        """Open the shared connection, if that is not done yet, and wait for it: one attempt.

        :param timeout: seconds; ``None`` for as long as it takes.
        :raises OSError: if it cannot be opened.
        """

    def close_when_idle(self) -> None:
        """Release the shared connection once it has no streams. Does not wait."""

    def close(self) -> None:
        """Release the shared connection. Idempotent; the next call opens it again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, deadline: float | None, cancel: Cancel | None, *, wait_for_reconnect: bool) -> Stream:
        answer: Promise[Stream] = Promise()
        give_up = self.dial(deadline, answer.put, self_contained=True, wait_for_reconnect=wait_for_reconnect)
        try:
            outcome = answer.get(deadline, cancel)
        finally:
            # Also after a success, where it does nothing: without it an attempt whose caller was interrupted would go
            # on.
            give_up()
        if outcome is not None:
            return outcome
        if answer.cancelled:
            raise ConnectError(f"{self.target}: the attempt was given up")
        raise ConnectError(f"{self.target}: no answer in time", reason="connect_timeout")

    def __repr__(self) -> str:
        return f"<relay factory to {self.target}>"


class Upgrade(Dialer):
    """Streams of another dialer, each made into another one or given clearer errors.

    :param inner: makes the streams; it is closed with this dialer.
    :param target: the name of the target in records; ``None`` for that of ``inner``.
    :param begin: begins to make another stream of a connected one, such as one of TLS, without blocking: it is called
        with the stream, which it owns from then on, the deadline (monotonic seconds or ``None``) and a callback for the
        new stream or the error; it returns a function that gives it up. ``None`` to leave the streams as they are.
    :param begin_on: does the same in a thread that it gets as a further, first argument; see :meth:`Dialer.on`.
    :param explain: returns the error that users see for one of ``inner``; ``None`` to leave the errors as they are.
    :param has_session: whether the new stream is a session over the old one, such as one of TLS.
    """

    _handshake = HANDSHAKE  # the number of its step

    def __init__(
        self,
        inner: Dialer,
        target: str | None = None,
        *,
        begin: BeginUpgrade | None = None,
        begin_on: BeginUpgradeOn | None = None,
        explain: Callable[[OSError], OSError] | None = None,
        has_session: bool = False,
    ) -> None:
        super().__init__(inner.target if target is None else target)
        self.inner = inner
        self.route = inner.route
        self._begin_upgrade = begin
        self._begin_on = begin_on
        self._explain = explain
        self._has_session = has_session

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Begin to make a stream; see :meth:`Dialer.dial`."""
        begin = self._begin_upgrade
        if begin is None:
            return self.inner.dial(
                deadline, self._explained(done), self_contained=self_contained, wait_for_reconnect=wait_for_reconnect
            )
        steps = CallbackChain(self._explained(done))
        begun = time.monotonic()

        def upgrade(outcome: Stream | OSError) -> None:
            if isinstance(outcome, OSError):
                return steps.finish(outcome)
            now = time.monotonic()
            # A plain connect notes no path, which saves two readings of the clock; here its time is known anyway.
            path = outcome.path or StreamPath(((len(self.route) + 1, now - begun),))
            upgraded = functools.partial(finish, path, now)
            if not steps.begin(functools.partial(begin, outcome, deadline), upgraded):
                # It was given up in between: neither the chain nor the upgrade owns this stream.
                outcome.close()
            return None

        def finish(path: StreamPath, connected: float, outcome: Stream | OSError) -> None:
            if isinstance(outcome, Stream):
                outcome.path = path.extended(self._handshake, time.monotonic() - connected)
            steps.finish(outcome)

        steps.begin(
            functools.partial(
                self.inner.dial, deadline, self_contained=self_contained, wait_for_reconnect=wait_for_reconnect
            ),
            upgrade,
        )
        return steps.give_up

    def bound(self, source: Source) -> Dialer:
        """Return one whose connections come from an address of this machine; see :meth:`Dialer.bound`."""
        if self.route:
            return super().bound(source)  # the address would be that of the connection to the first hop
        other = copy.copy(self)
        other.inner = self.inner.bound(source)
        return other

    @property
    def introduces(self) -> bool:  # type: ignore[override]
        """True if a header goes under a session; see :meth:`Dialer.introducing`."""
        return self._has_session or self.inner.introduces

    def introducing(self, header: bytes) -> Dialer:
        """Return one that sends a header below the session; see :meth:`Dialer.introducing`."""
        other = copy.copy(self)
        begin = self._begin_upgrade
        if self._has_session and begin is not None:
            other._begin_upgrade = functools.partial(_upgrade_introduced, self.target, header, begin)
        else:
            other.inner = self.inner.introducing(header)
        return other

    def confirming(self) -> Dialer:
        """Return one whose streams the target has accepted, as a handshake proves; see :meth:`Dialer.confirming`."""
        # A handshake is an answer of the target itself. Without a session the inner dialer decides, and one that cannot
        # confirm returns itself: a copy of this one would differ in nothing.
        if self._has_session or (inner := self.inner.confirming()) is self.inner:
            return self
        other = copy.copy(self)
        other.inner = inner
        return other

    def on(self, engine: Engine) -> Dialer:
        """Return a dialer that upgrades in the thread of an engine, if it can; see :meth:`Dialer.on`."""
        if self._begin_on is None and self._begin_upgrade is not None:
            return self  # it needs the inner one's kernel socket
        other = copy.copy(self)
        other.inner = self.inner.on(engine)
        if self._begin_on is not None:  # the inner streams have kernel sockets: no session is in another one
            other._begin_upgrade = functools.partial(self._begin_on, engine)
        return other

    def _explained(self, done: OnResult) -> OnResult:
        """Return a callback that explains the error, also a later one of the stream, and then calls ``done``."""
        explain = self._explain
        if explain is None:
            return done

        def on_outcome(outcome: Stream | OSError) -> None:
            if isinstance(outcome, OSError):
                try:
                    outcome = explain(outcome)
                except Exception:
                    logger.exception("an error cannot be explained; this is a bug in relay")
                done(outcome)
                return
            failure = outcome.failure
            if failure is not None:
                # A stream may fail later for the same reason as a dial, and its log line must then say the same.
                outcome.failure = functools.partial(_explained_failure, failure, explain)
            done(outcome)

        return on_outcome

    def ready(self, timeout: float | None = 30.0) -> None:
        """Open the shared connection, and wait for it; see :meth:`Dialer.ready`."""
        try:
            self.inner.ready(timeout)
        except OSError as error:
            if self._explain is None or (explained := self._explain(error)) is error:
                raise
            raise explained from error

    @property
    def state(self) -> str:
        """The state of the shared connection; see :attr:`Dialer.state`."""
        return self.inner.state

    @property
    def last_error(self) -> str | None:
        """The reason that there is no shared connection; see :attr:`Dialer.last_error`."""
        problem = self.inner.last_error
        if problem is None or self._explain is None:
            return problem
        return str(self._explain(OSError(problem)))

    def subscribe(self, watcher: Callable[[Any, Exception | None], object]) -> None:
        """Call ``watcher(state, error)`` at each change; see :meth:`Dialer.subscribe`."""
        self.inner.subscribe(watcher)

    def close_when_idle(self) -> None:
        """Release the shared connection once it has no streams; see :meth:`Dialer.close_when_idle`."""
        self.inner.close_when_idle()

    def close(self) -> None:
        """Close the inner dialer."""
        self.inner.close()


def introduced(dialer: Dialer, header: bytes) -> Dialer:
    """Return a dialer of the same target whose streams begin with a header of the PROXY protocol.

    It goes below the session of the stream if there is one; see :meth:`Dialer.introducing`.

    :param dialer: makes the streams; the new one need not be closed.
    :param header: the bytes; none for no header.
    """
    if not header:
        return dialer
    if dialer.introduces:
        return dialer.introducing(header)

    def begin(stream: Stream, deadline: float | None, done: OnResult) -> Abort:
        _send_header(dialer.target, header, stream)
        stream.is_introduced = True
        done(stream)
        return lambda: None

    return Upgrade(dialer, begin=begin)


def _send_header(target: str, header: bytes, stream: Stream) -> None:
    """Send a header, for which the buffer of a fresh stream has room."""
    try:
        # It is the first thing in an empty buffer. A part of a header would be taken for data of the client.
        if stream.socket.send(header) != len(header):
            raise ConnectionResetError("it does not take a few bytes")
    except OSError as error:
        raise ConnectError(f"{target}: the connection was lost before the header of the PROXY protocol") from error


def _upgrade_introduced(
    target: str, header: bytes, begin: BeginUpgrade, stream: Stream, deadline: float | None, done: OnResult
) -> Abort:
    """Send a header, then begin to upgrade the stream."""
    _send_header(target, header, stream)

    def mark(outcome: Stream | OSError) -> None:
        if isinstance(outcome, Stream):
            outcome.is_introduced = True
        done(outcome)

    return begin(stream, deadline, mark)


def _explained_failure(
    failure: Callable[[], BaseException | None], explain: Callable[[OSError], OSError]
) -> BaseException | None:
    error = failure()
    return explain(error) if isinstance(error, OSError) else error


class Network(Protocol):
    """The network as seen from one place: from this machine, or from the far end of a hop."""

    @property
    def route(self) -> Route:
        """The hops to that place, the nearest first."""

    @property
    def trace(self) -> Trace:
        """The observer of what is dialed in it."""

    def to(self, place: Target | I2PTarget | Command) -> Dialer:
        """Return a dialer for an address as it is seen from there. Opens nothing.

        :raises AddressError: if that place cannot lead to the address.
        :raises OSError: if a file that the address names cannot be read.
        :raises ValueError: if a file does not hold what it should.
        """

    def beyond(self, hop: Hop) -> Network:
        """Return the network as seen from a hop that is reached from there. Opens nothing."""
