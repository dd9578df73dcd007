"""The relay thread: accepts from one listener, makes a stream for each client, and moves bytes both ways."""

from __future__ import annotations

import collections
import functools
import logging
import math
import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from ..eventloop.loop import Loop, Timer
from ..eventloop.pipes import PipePool
from ..eventloop.sockets import format_address
from ..streams.fairness import ROOM, crowding
from ..streams.introduction import Greeting, HearingListener
from ..streams.rate_limited_log import RateLog
from ..streams.stream import Stream
from .acceptor import make_acceptor
from .connection import Connection, ConnectionRecord, Stats
from .connector import MOST_CALLS, Connector
from .flow import Workspace
from .limits import Limits
from .observer import Observer, OnEnd

__all__ = ["RelayThread"]

logger = logging.getLogger("relay")

_SETTLED = 15.0  # seconds after an accept when keep-alive is turned on
_REMEMBERED = 100  # ended connections that recent() tells of
_UNDECIDED = 1024  # half-open clients at one time: those that are being heard, or sent away
_LET_GO = 0.5  # seconds that close() waits for threads which are closing streams
_living: weakref.WeakSet[RelayThread] = weakref.WeakSet()


class RelayThread:
    """What a tunnel is inside: its thread, and all that belongs to that.

    The members of the first part may be called from any thread; the rest is for the acceptor, the connector and the
    connections, in the relay thread. The arguments have been checked, and are as for :class:`relay.Tunnel`.

    :param receive: the listener, which is closed at the end.
    :param make_send: the factory, which is closed at the end if it can be.
    :param nconnect: the most connections at one time, or −1.
    :param limits: of each connection.
    :param name: in the log, and of the thread.
    :param on_end: called with the record of each connection that has ended, on another thread.
    :raises OSError: if the system has no descriptor left. ``receive`` and ``make_send`` stay with the caller then.
    """

    def __init__(
        self,
        receive: Any,
        make_send: Callable[..., Any],
        nconnect: int,
        limits: Limits,
        name: str,
        on_end: OnEnd | None,
    ) -> None:
        self.name = name
        self.limits = limits
        self.closing = False
        self.when_over: set[Callable[[], object]] = set()
        """What is called, in the relay thread, when all is done."""
        self._nconnect = nconnect
        self._most_calls = min(nconnect, MOST_CALLS) if nconnect > 0 else MOST_CALLS
        self._observer = Observer(on_end, name) if on_end is not None else None
        self._receive = receive
        self._make_send = make_send
        if hasattr(receive, "handshake_timeout"):
            receive.handshake_timeout = limits.handshake
        self._connections: dict[Connection, None] = {}
        # Half-open ones, which have no stream and for which none is made, the oldest first; nconnect counts the others.
        self.undecided: dict[Connection, None] = {}
        self._queued: dict[Connection, None] = {}  # those that have said where they want to be led, beyond nconnect
        self._serving = False
        self._crowded = RateLog(logger, logging.WARNING)
        self.guesses = RateLog(logger, logging.WARNING)  # wrong users and passwords
        self._recent: collections.deque[Connection] = collections.deque(maxlen=_REMEMBERED)
        self._accepted = self._received = self._sent = 0
        self._failed: collections.Counter[str] = collections.Counter()
        self.swept = 0.0  # when keep-alive was last turned on for all that are open
        self._paused = False
        self._forked = False
        self._over = threading.Event()
        self._spare: int | None = None
        self.loop = Loop()
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            self._pipes = PipePool() if hasattr(os, "splice") else None
            self.workspace = Workspace(self.loop, self._pipes)
            self._connector = Connector(self, make_send)
            self._settle = Timer(self.loop.timers, self._keep_alive)
            self._drained = Timer(self.loop.timers, self._stop)
            self._acceptor = make_acceptor(self, receive)
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            _living.add(self)
            self._thread.start()
        except BaseException:
            self.spend_spare()
            self.loop.close()
            raise

    # -- for everybody, from any thread -----------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether all is done."""
        return self._over.is_set()

    @property
    def state(self) -> str:
        """``open``, ``paused``, ``closing`` or ``closed``."""
        if self._over.is_set():
            return "closed"
        return "closing" if self.closing else "paused" if self._paused else "open"

    @property
    def count(self) -> int:
        """How many connections live."""
        return len(self._connections)

    def connections(self) -> list[ConnectionRecord]:
        """See :meth:`relay.Tunnel.connections`."""
        now = time.monotonic()
        return [connection.record(now) for connection in list(self._connections)]

    def recent(self) -> list[ConnectionRecord]:
        """See :meth:`relay.Tunnel.recent`."""
        now = time.monotonic()
        return [connection.record(now) for connection in self._recent.copy()]

    def stats(self) -> Stats:
        """See :meth:`relay.Tunnel.stats`."""
        living = self.connections()
        return Stats(
            accepted=self._accepted,
            active=len(living),
            received=self._received + sum(record.received for record in living),
            sent=self._sent + sum(record.sent for record in living),
            failed=dict(self._failed),
        )

    def pause(self, close: bool) -> None:
        """See :meth:`relay.Tunnel.pause`."""
        self._in_loop(functools.partial(self._pause, close))

    def resume(self) -> None:
        """See :meth:`relay.Tunnel.resume`."""
        self._in_loop(self._resume)

    def begin_to_close(self, drain: float | None) -> None:
        """Stop listening, and end what is left after ``drain`` seconds, or never. Waits for nothing."""
        if not self._forked:
            self.loop.call(functools.partial(self._close, drain))

    def close(self, drain: float | None) -> None:
        """See :meth:`relay.Tunnel.close`."""
        self.begin_to_close(drain)
        if not self._forked and not self._is_ours() and not self._connector.workers.is_one():
            self._over.wait()
            self._thread.join()

    def join(self, timeout: float | None = None) -> None:
        """See :meth:`relay.Tunnel.join`."""
        if not self._forked and not self._is_ours():
            self._thread.join(timeout)

    def _is_ours(self) -> bool:
        """Whether the current thread must not wait for the tunnel's end, which waits for it."""
        return self.is_here() or (self._observer is not None and self._observer.is_here())

    # -- the relay thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        # Splicing into a socket whose peer has gone raises SIGPIPE, which no flag of splice prevents.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        self.on_start(time.monotonic())
        self.update_listening()
        try:
            self.loop.run()
        finally:
            try:
                self._tear_down()
            finally:
                for tell in tuple(self.when_over):
                    tell()

    # Kinds of relay threads override these; here they do nothing. All are called in the relay thread.

    def on_start(self, now: float) -> None:
        """The thread has started; it accepts no client yet."""

    def on_admit(self) -> None:
        """A client was accepted; its connection is made next."""

    def on_over(self, connection: Connection) -> None:
        """A connection has ended and is counted."""

    def on_close(self, drain: float | None, now: float) -> None:
        """The first close begins; ``drain`` is as for :meth:`begin_to_close`."""

    def accepted(self, client: socket.SocketType, stream: Stream | None, peer: Any, now: float) -> None:
        """A client is here: make its stream."""
        connection = self._admit(client, stream, peer, now)
        if self._engaged() == self._nconnect:
            self.update_listening()
        self.make_stream(connection, now)

    def greeted(self, client: socket.SocketType, greeting: Greeting, peer: Any, now: float) -> None:
        """A client is here that says first where it wants to be led."""
        if len(self.undecided) >= _UNDECIDED:
            self.make_room(now)
        self._admit(client, None, peer, now).hear(greeting, now)

    def make_room(self, now: float) -> None:
        """End some half-open connections: they must not keep out others, and nothing is known of either yet."""
        if not self.undecided:
            return
        leaving = crowding(self.undecided, Connection.source, max(1, _UNDECIDED // ROOM))
        text = "%s: %d clients at a time are half-open; the oldest of the largest source are reset (%s)"
        self._crowded.log(
            now, text, self.name, len(self.undecided), format_address(leaving[0].peer) or "a local client"
        )
        for connection in leaving:
            connection.give_way(now)

    def decided(self, connection: Connection, now: float) -> None:
        """A client has said where it wants to be led."""
        del self.undecided[connection]
        if 0 <= self._nconnect < self._engaged():
            self._queued[connection] = None
            connection.watch_client()
        else:
            self.make_stream(connection, now)
        if not self._has_room():
            self.update_listening()

    def parting(self, connection: Connection, now: float) -> None:
        """A connection gets no stream, and is only sent the reason."""
        self._queued.pop(connection, None)
        self.undecided[connection] = None
        self._serve_queued(now)

    def _engaged(self) -> int:
        """How many connections count: those that have a stream, or for which one is made."""
        return len(self._connections) - len(self.undecided) - len(self._queued)

    def _serve_queued(self, now: float) -> None:
        """Make streams for those that wait for one, as many as may be."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._queued and self._engaged() < self._nconnect:
                connection = next(iter(self._queued))
                del self._queued[connection]
                self.make_stream(connection, now)
        finally:
            self._serving = False
        if not self.listening:
            self.update_listening()

    def _admit(self, client: socket.SocketType, stream: Stream | None, peer: Any, now: float) -> Connection:
        self.on_admit()
        self._accepted += 1
        connection = Connection(self, client, stream, peer, now)
        self._connections[connection] = None
        if self._settle.due == math.inf:
            self._settle.start(now + _SETTLED, now)
        return connection

    def make_stream(self, connection: Connection, now: float) -> None:
        """Make the outgoing stream of a connection, now or later."""
        try:
            self._connector.connect(connection, now)
        except Exception as error:  # noqa: BLE001  (whatever it is, it ends this connection only)
            self._connector.failed(connection, error, now)
        if self._connector.calls >= self._most_calls:
            self.update_listening()

    def offered(self, stream: Stream, peer: Any, now: float) -> None:
        """A listener object has accepted a client. It was asked to while there was room, but perhaps not any more."""
        if self.closing or self._paused:
            self.let_go(stream, clean=False)
        elif stream.denied is not None:
            self._deny(stream, peer, now)
        else:
            self.accepted(stream.socket, stream, peer, now)

    def _deny(self, stream: Stream, peer: Any, now: float) -> None:
        logger.warning("%s: %s", self.name, stream.denied)
        self._accepted += 1
        connection = Connection(self, stream.socket, stream, peer, now)
        self._connections[connection] = None
        connection.close("denied", now)

    def connection_over(self, connection: Connection) -> None:
        """A connection has ended."""
        del self._connections[connection]
        self.undecided.pop(connection, None)
        self._queued.pop(connection, None)
        self._recent.append(connection)
        self._received += connection.received
        self._sent += connection.sent
        reason = connection.reason
        if reason not in ("done", "closed"):
            if reason == "lifetime" and not self._failed["lifetime"]:
                self._warn_of_lifetime(connection)
            self._failed[str(reason)] += 1
        if self._observer is not None:
            self._observer.put(connection.record(connection.finished))
        if logger.isEnabledFor(logging.INFO):
            record = connection.record(connection.finished)
            logger.info("%s: %s", self.name, _in_one_line(record), extra={"connection": record})
        if self._queued:
            self._serve_queued(connection.finished)
        if self.closing:
            if not self._connections:
                self.loop.stop()
        elif not self.listening:
            self.update_listening()
        self.on_over(connection)

    def _warn_of_lifetime(self, connection: Connection) -> None:
        text = (
            "%s: timeout: reset the connection of %s after %g s, the longest that one may last; "
            "timeout=None is no limit (logged once for a tunnel)"
        )
        logger.warning(text, self.name, format_address(connection.peer) or "a local client", self.limits.lifetime)

    def let_go(self, stream: Stream, clean: bool) -> None:
        """Close a stream, or reset it; what is to be done afterwards may block and is done elsewhere."""
        on_close, stream.on_close = stream.on_close, None
        if clean:
            self.loop.discard(stream.socket)
        else:
            stream.reset()
        if on_close is None:
            return
        if getattr(on_close, "nonblocking", False):
            on_close()
        else:
            self._connector.submit(on_close)

    @property
    def unlimited(self) -> bool:
        """Whether there may be any number of connections at one time."""
        return self._nconnect < 0

    def is_here(self) -> bool:
        """Whether the current thread is the relay thread."""
        return threading.current_thread() is self._thread

    @property
    def listening(self) -> bool:
        """Whether clients are let in at this moment."""
        return self._acceptor.listening

    def update_listening(self) -> None:
        """Listen if and only if somebody more may come."""
        self._acceptor.listen(not self.closing and not self._paused and self._has_room())

    def _has_room(self) -> bool:
        limit = self._nconnect
        if 0 <= limit <= self._engaged() + len(self._queued):
            return False
        return self._connector.calls < self._most_calls

    def _keep_alive(self, now: float) -> None:
        """Have vanished peers noticed, for the connections that turned out to last: short ones are spared the cost."""
        self.swept = now
        for connection in reversed(self._connections):
            if not connection.keep_alive():
                break

    # The spare descriptor is what the outgoing stream of the last accepted client is made of when there is no other:
    # whoever is let in can be served.

    def has_spare(self) -> bool:
        """Whether the spare descriptor is there; takes it again if it can."""
        if self._spare is None:
            try:
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
        return True

    def spend_spare(self) -> bool:
        """Let the spare descriptor go, if it is there."""
        if self._spare is None:
            return False
        os.close(self._spare)
        self._spare = None
        return True

    def _pause(self, close: bool) -> None:
        now = time.monotonic()
        self._paused = True
        self.update_listening()
        if close:
            self._end_all(now)

    def _resume(self) -> None:
        self._paused = False
        self.update_listening()

    def _close(self, drain: float | None) -> None:
        now = time.monotonic()
        if not self.closing:
            self.on_close(drain, now)
            self.closing = True
            self._acceptor.listen(False)
            self._acceptor.close()
        due = now + drain if drain is not None else math.inf
        if not self._connections or due <= now:
            self._stop(now)
        elif due < self._drained.due:
            self._drained.start(due, now)

    def _stop(self, now: float) -> None:
        self._end_all(now)
        self.loop.stop()

    def _end_all(self, now: float) -> None:
        self._queued.clear()
        for connection in list(self._connections):
            connection.close("closed", now)

    def _tear_down(self) -> None:
        self._connector.workers.close()
        until = time.monotonic() + _LET_GO
        self._acceptor.join(_LET_GO)
        self._connector.workers.join(until - time.monotonic())
        self.spend_spare()
        if self._pipes is not None:
            self._pipes.close()
        self.loop.close()
        _living.discard(self)
        close = None if isinstance(self._make_send, type) else getattr(self._make_send, "close", None)
        if callable(close):
            try:
                close()
            except Exception:
                logger.exception("%s: closing the factory failed", self.name)
        if self._observer is not None:
            self._observer.close()
        self._over.set()

    def _in_loop(self, function: Callable[[], object]) -> None:
        """Have ``function`` called in the relay thread and wait until it was; once the tunnel has ended, do nothing."""
        if self._forked:
            return
        if threading.current_thread() is self._thread:
            function()
            return
        done = threading.Event()

        def call() -> None:
            try:
                function()
            finally:
                done.set()

        if self.loop.call(call):
            done.wait()

    # -- a forked child -----------------------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """Close this process's copies of the descriptors. The parent's sockets and its epoll are not touched."""
        self._forked = self.closing = True
        self._over.set()
        for connection in list(self._connections):
            connection.after_fork()
        self._connections.clear()
        self.spend_spare()
        if self._pipes is not None:
            self._pipes.close()
        self.loop.close()
        if isinstance(self._receive, HearingListener):
            self._receive.listening.close()
        elif isinstance(self._receive, socket.socket):
            self._receive.close()


def _after_fork_in_child() -> None:
    for relay in list(_living):
        relay._after_fork()
    _living.clear()


def _before_fork() -> None:
    # From now on a child may hold copies of the descriptors that are open.
    for relay in list(_living):
        relay.loop.closing_forgets = False


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)


def _in_one_line(record: ConnectionRecord) -> str:
    return (
        f"{format_address(record.peer) or 'a local client'} -> {record.target or 'nowhere'}: "
        f"{record.reason} after {record.age:.3f} s, "
        f"{record.received} bytes received, {record.sent} sent, {record.engine}"
    )
