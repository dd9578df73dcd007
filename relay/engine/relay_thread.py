"""The relay thread: accepts from one listener, makes a stream for each client, and moves bytes both ways."""

from __future__ import annotations

import errno
import functools
import logging
import math
import os
import socket
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..access.policy import ClientPolicy
from ..eventloop.loop import Timer
from ..eventloop.pipes import PipePool
from ..eventloop.sockets import LentSocket, is_exposed
from ..streams.identity import identity_of_process
from ..streams.listener import TunnelListener, UpgradeListener
from ..streams.protocols import MakeSend
from ..streams.proxy_handshake import HandshakeListener
from ..streams.stream import Stream
from ..streams.user_names import named
from .acceptor import Acceptor, SocketAcceptor, adapt_acceptor, make_acceptor
from .admission import Slots, SpareDescriptor
from .connection import Connection
from .connection_id import id_of, number_of
from .connector import MOST_CALLS, Connector, close_factory, introduce_probes
from .entrance import Entrance
from .generation import Generations
from .lifecycle import LoopThread
from .limits import LOOK, Limits
from .loops import LoopWatch
from .observer import Observer
from .options import TunnelOptions
from .outlets import Outlets
from .records import ConnectionRecord, ConnectionState, Metrics, Stats
from .statistics import Statistics
from .workspace import Workspace

if TYPE_CHECKING:  # most tunnels have no gate, and start faster without it
    from ..access.gate import Gate

logger = logging.getLogger("relay")

_JOIN_TIMEOUT = 0.5  # seconds that close() waits for threads that close streams
# They get the route of the time when it is made.
_WITHOUT_ROUTE = (ConnectionState.REQUESTING, ConnectionState.ADMITTING, ConnectionState.QUEUED)
_all: weakref.WeakSet[RelayThread] = weakref.WeakSet()


class RelayThread(LoopThread):
    """The thread of a tunnel, and all that belongs to it; the table of its states is in :mod:`.lifecycle`.

    The members of the first part, and those of the base class, may be called from any thread. The rest is for the
    acceptor, the connector and the connections, in the relay thread. The arguments have been checked.

    :param receive: the listener; it is closed at the end.
    :param make_send: the factory; it is closed at the end if it has a ``close``.
    :param options: of the tunnel; they have a name.
    :param policy: what the clients have to fulfil; ``None`` for nothing.
    :param outlets: those of the process; ``None`` for none.
    :param paused: whether it accepts no client at first.
    :raises OSError: if the system has no descriptor left. ``receive`` and ``make_send`` stay with the caller then.
    """

    def __init__(
        self,
        receive: TunnelListener,
        make_send: MakeSend,
        options: TunnelOptions,
        policy: ClientPolicy | None = None,
        *,
        outlets: Outlets | None = None,
        paused: bool = False,
    ) -> None:
        outlets = outlets or Outlets()
        self._is_paused_at_first = paused
        # Clients that a listener object had accepted when a pause came; it accepts no more then.
        self._on_their_way: list[tuple[Stream, Any]] = []
        self.options, self.labels = options, options.labels
        self.limits = limits = Limits.of(options)
        name = options.name or ""
        self.looked_until = 0.0  # the acceptance of the last connection that was looked at because it lasts
        self._receive = receive
        self._make_send = make_send
        receive.handshake_timeout = limits.handshake
        self._slots = Slots(-1)
        self._set_limit(options.nconnect)
        self._observer = Observer(options.on_end, name) if options.on_end is not None else None
        self._statistics = Statistics(name, limits.lifetime, self._observer, outlets)
        super().__init__(name)
        self.entrance = Entrance(self, self._slots, policy, options.send_proxy, outlets.store)
        self._generations = Generations(self.loop.timers)
        self._loops = LoopWatch(name, self.loop, self._slots.connections, self._others)
        self._spare = SpareDescriptor()
        self.has_spare_fd = self._spare.is_available
        self.release_spare_fd = self._spare.release
        try:
            self._pipes = PipePool() if hasattr(os, "splice") else None
            self.workspace = Workspace(self.loop, self._pipes, self.name)
            self._connector = Connector(self, make_send, options.source)
            self._look = Timer(self.loop.timers, self._look_at_new)
            self._acceptor: Acceptor = self.make_acceptor(receive)
            # Before the thread starts: a fork from then on must find it, to close the copies of its descriptors.
            _all.add(self)
            self.start()
        except BaseException:
            self._spare.release()
            self.loop.close()
            raise

    # -- from any thread --------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """The number of open connections."""
        return len(self._slots.connections)

    def connections(self, first: int = 0, most: int | None = None) -> list[ConnectionRecord]:
        """See :meth:`relay.Tunnel.connections`, and :func:`~relay.engine.tunnel.part_of_connections`."""
        now = time.monotonic()
        return [connection.record(now) for connection in self.all_connections[first:][:most]]

    def recent(self) -> list[ConnectionRecord]:
        """See :meth:`relay.Tunnel.recent`."""
        return self._statistics.recent()

    def stats(self) -> Stats:
        """See :meth:`relay.Tunnel.stats`."""
        return self.metrics().stats()

    def metrics(self) -> Metrics:
        """See :meth:`relay.Tunnel.metrics`."""
        metrics = self._statistics.metrics(self._slots.connections, self._connector.warm_figures())
        gate, throttled = self.entrance.gate, self.workspace.throttled
        if gate is None and not throttled:
            return metrics
        return metrics._replace(bans=gate.count_bans() if gate is not None else {}, throttled=throttled)

    @property
    def gate(self) -> Gate | None:
        """The bans and quotas of its clients; ``None`` if it has none to decide or to remember."""
        return self.entrance.gate

    def keep_warm(self, count: int, seconds: float) -> None:
        """See ``warm`` of :class:`relay.Tunnel`."""
        self.loop.call(functools.partial(self._connector.keep_warm, count, seconds))

    def kill(self, connection_id: str) -> bool:
        """See :meth:`relay.Tunnel.kill`."""
        number = number_of(connection_id)
        # A copy of the keys in one step: connections come and go in the relay thread meanwhile.
        found = [one for one in list(self._slots.connections) if one.summary.number == number]
        killed: list[Connection] = []

        def kill() -> None:
            # It may have ended between the look above and this call.
            if not found[0].is_closed:
                found[0].close("killed", time.monotonic())
                killed.append(found[0])

        if found and id_of(found[0].summary.number, found[0].summary.started) == connection_id.lower():
            self.run_in_thread(kill)
        return bool(killed)

    make_acceptor = make_acceptor

    # -- the relay thread -------------------------------------------------------------------------------------------

    # Subclasses override these hooks. All are called in the relay thread.

    def on_start(self, now: float) -> None:
        """Take the start of the thread; it accepts no client yet, and goes on so if it is paused at first."""
        if self._is_paused_at_first:
            if isinstance(self._receive, UpgradeListener):
                self._receive.deliver(None, self.workspace)  # which accepts by itself until then
            self._pause(close=False)

    def on_busy(self) -> None:
        """Take a client that was accepted while there was no connection; its connection is made next."""

    def on_idle(self, now: float) -> None:
        """Take the end of the last connection, which is counted."""

    def on_close(self, drain: float | None, now: float) -> None:
        """Take the first close; ``drain`` is that of :meth:`start_close`."""

    # -- changes, each for new connections; see :mod:`.changes` -----------------------------------------------------

    def change_options(self, options: TunnelOptions, limits: Limits, now: float) -> None:
        """Go by other options; for open connections the limit of their number and the time to be idle change, too.

        :param options: all of them; what clients have to fulfil is the entrance's.
        :param limits: those of the options.
        """
        before, self.options, self.limits = self.limits, options, limits
        self.labels = options.labels
        self._statistics.lifetime = limits.lifetime
        self._set_limit(options.nconnect)
        self._receive.handshake_timeout = limits.handshake
        for connection in self.all_connections if limits.idle != before.idle else ():
            connection.deadline.change_idle(limits.idle, now)
        self._acceptor = adapt_acceptor(self, self._acceptor)
        self.entrance.set_header(options.send_proxy)
        if options.source != self._connector.source:
            self._connector.set_factory(self._make_send, options.source)
        introduce_probes(self._make_send, options.send_proxy)
        self._connector.keep_warm(options.warm, options.warm_for)
        # A higher limit has slots for those that wait.
        self.entrance.serve_queue(now)
        self.update_listening()

    def change_factory(
        self, make_send: MakeSend, source: str | None, drain: float | None = None, spread: float = 0.0
    ) -> None:
        """Make streams by another factory; the old one is closed when the connections that are open now have ended."""
        close = functools.partial(close_factory, self._make_send, self.name)
        self._make_send = make_send
        self._connector.set_factory(make_send, source)
        introduce_probes(make_send, self.options.send_proxy)
        self._retire(lambda: self._connector.submit(close), drain, spread)

    def change_listener(
        self, receive: TunnelListener, acceptor: Acceptor, drain: float | None = None, spread: float = 0.0
    ) -> Acceptor:
        """Accept from another listener; return the acceptor of the old one, which is still to be closed.

        The clients that have connected to the old one are accepted first.
        """
        old = self._acceptor
        if isinstance(old, SocketAcceptor):
            old.take_backlog(time.monotonic())  # while it is the tunnel's, which stops it when there is no room left
        self.set_listener(receive, acceptor)
        old.listen(False)
        self.update_listening()
        self._retire(None, drain, spread)
        return old

    def set_listener(self, receive: TunnelListener, acceptor: Acceptor) -> None:
        """Take another listener, at which :meth:`update_listening` accepts."""
        self._acceptor, self._receive = adapt_acceptor(self, acceptor), receive
        receive.handshake_timeout = self.limits.handshake

    def change_warm(self, count: int, seconds: float) -> None:
        """Keep another number of streams ready at once; the parameters are those of :meth:`keep_warm`."""
        self._connector.keep_warm(count, seconds)

    def _retire(self, over: Callable[[], object] | None, drain: float | None, spread: float) -> None:
        """Begin a generation with the connections that have the old route and listener."""
        routed = [one for one in self.all_connections if one.state not in _WITHOUT_ROUTE]
        self._generations.begin(routed, over, drain, spread)

    def _set_limit(self, nconnect: int) -> None:
        self._slots.limit = nconnect
        self.most_calls = min(nconnect, MOST_CALLS) if nconnect > 0 else MOST_CALLS

    def accepted(self, client: socket.SocketType, stream: Stream | None, peer: Any, now: float) -> None:
        """Make a stream for a client."""
        if self.entrance.reads_headers and stream is None:
            return self.entrance.read_request(client, None, peer, now)
        connection = self.admit(client, stream, peer, now)
        # A client without a host and port may be one at a Unix socket, whose user has a name.
        if (self.entrance.gate is not None or not isinstance(peer, tuple)) and not self.entrance.admits(
            connection, now
        ):
            return None
        slots = self._slots
        if slots.limit >= 0 and slots.used() == slots.limit:
            self._loops.look_now_and_then(now)
            self.update_listening()
        return self.make_stream(connection, now)

    def hand_of(self, listener: TunnelListener) -> Callable[[socket.SocketType, Any, float], object] | None:
        """Return what takes a client that first sends a request or shakes hands; ``None`` for :meth:`accepted`."""
        return self.entrance.hand_of(listener)

    def make_room(self, now: float) -> None:
        """End denied clients, half-open connections and warm streams: no descriptor is left for a client."""
        self.entrance.empty_tarpit(now)
        self._connector.make_room(now)
        self.entrance.make_room(now)
        self._loops.look_now_and_then(now, is_used_up=True)

    def admit(
        self, client: socket.SocketType, stream: Stream | None, peer: Any, now: float, count: int = 1
    ) -> Connection:
        """Return the connection of a client that was accepted; ``count`` is 0 if it may be none."""
        connections = self._slots.connections
        if not connections:
            self.on_busy()
        self._statistics.accepted += count
        connection = Connection(self, client, stream, peer, now)
        if stream is None and not isinstance(peer, tuple):  # a program can bind its Unix socket to any name
            identity = identity_of_process(client)
            connection.summary.identity = named(identity) if identity is not None else None
        connections[connection] = None
        if self._look.due == math.inf:
            self._look.start(now + LOOK, now)
        return connection

    def count_accepted(self) -> None:
        """Count a client that was not counted when it was accepted."""
        self._statistics.accepted += 1

    def call_elsewhere(self, job: Callable[[], object]) -> None:
        """Call a function that may block on another thread; it must not raise."""
        self._connector.workers.submit(job)

    def make_stream(self, connection: Connection, now: float) -> None:
        """Make the outgoing stream of a connection, now or later."""
        if len(self._slots.connections) >= self._loops.next_count and self._loops.resets(connection, now):
            return
        try:
            self._connector.connect(connection, now)
        except Exception as error:  # noqa: BLE001  (whatever it is, it ends this connection only)
            self._connector.failed(connection, error, now)

    def offered(self, stream: Stream, peer: Any, now: float) -> None:
        """Take a client that a listener object has accepted, perhaps when there was room no longer."""
        self._spare.is_available()  # opened here, as this listener does not ask for it before it accepts
        if self.is_closing:
            self.close_stream(stream, clean=False)
        elif not self.is_open:
            self._on_their_way.append((stream, peer))
        elif stream.denied is not None:
            self.workspace.log_problem("denied", "%s: %s", self.name, stream.denied)
            self._statistics.accepted += 1
            connection = Connection(self, stream.socket, stream, peer, now)
            connection.summary.rule = "access-list"
            self.entrance.log_denied(connection, now)
            self._slots.connections[connection] = None
            connection.close("denied", now)
        elif self.entrance.is_introduced(stream, peer, now):
            if isinstance(self._receive, HandshakeListener):  # it has shaken hands, and sends its request next
                handshake = self._receive.handshake(stream.socket)
                self.entrance.read_request(stream.socket, handshake, peer, now, stream=stream)
            else:
                self.accepted(stream.socket, stream, peer, now)

    def connection_over(self, connection: Connection) -> None:
        """Count a connection that has ended, and use its slot."""
        slots = self._slots
        is_client = not slots.half_open or self.entrance.end_half_open(connection)
        slots.remove(connection)
        if is_client:
            self._statistics.add(connection)
        if self._generations.living:
            self._generations.remove(connection)
        # Before the next client is accepted: those in the queue have waited longer.
        if slots.queued:
            self.entrance.serve_queue(connection.summary.finished)
        if not self._acceptor.listening:
            if self.is_closing:
                self.look_drained()
            else:
                self.update_listening()
        if not slots.connections:
            self.on_idle(connection.summary.finished)

    def accept_failed(self, error: BaseException) -> None:
        """Count an error of accepting a client, in the thread that accepts."""
        number = error.errno if isinstance(error, OSError) else None
        self._statistics.accept_errors[errno.errorcode.get(number or 0, "other")] += 1

    def close_stream(self, stream: Stream, clean: bool) -> None:
        """Close a stream, or reset it; its ``on_close`` may block, and is called on another thread then."""
        # Taken away first: reset() would call it in this thread, where it may block.
        on_close, stream.on_close = stream.on_close, None
        if clean:
            self.loop.discard(LentSocket(stream.socket))
        else:
            stream.reset()
        if on_close is None:
            return
        if getattr(on_close, "nonblocking", False):
            on_close()
        else:
            self._connector.submit(on_close)

    @property
    def all_connections(self) -> list[Connection]:
        """The connections that have not ended, the oldest first."""
        return list(self._slots.connections)

    def _others(self) -> list[Connection]:
        """Return the connections of the other tunnels of this process."""
        return [one for relay in list(_all) if relay is not self for one in relay.all_connections]

    @property
    def unlimited(self) -> bool:
        """True if there is no limit of connections."""
        return self._slots.limit < 0

    @property
    def listening(self) -> bool:
        """True while clients are accepted."""
        return self._acceptor.listening

    @property
    def is_exposed(self) -> bool:
        """True if clients of other machines can reach the listener, perhaps by way of a balancer."""
        receive = self._receive
        if not isinstance(receive, HandshakeListener):
            return False
        listening: socket.socket | None = receive.listening  # none at I2P
        return self.entrance.reads_headers or listening is None or is_exposed(listening)

    def update_listening(self) -> None:
        """Accept if and only if there is room for another client."""
        if self.is_open and self._on_their_way:
            waiting, self._on_their_way = self._on_their_way, []
            for stream, peer in waiting:
                self.offered(stream, peer, time.monotonic())
        self._acceptor.listen(self.is_open and self._has_room())

    def _has_room(self) -> bool:
        return self._slots.has_room() and self._connector.calls < self.most_calls

    def _look_at_new(self, now: float) -> None:
        """Do for the connections that have lasted what short ones are spared: keepalive, and a deadline."""
        before, self.looked_until = self.looked_until, now
        for connection in reversed(self._slots.connections):
            if connection.summary.started <= before:
                break
            connection.lasts(now)

    def close_listener(self) -> None:
        """Accept no client any more."""
        self._acceptor.listen(False)
        self._acceptor.close()
        for stream, _ in self._on_their_way:
            self.close_stream(stream, clean=False)
        self._on_their_way.clear()
        self._connector.keep_warm(0, 0.0)
        self.entrance.empty_tarpit(time.monotonic())

    def must_not_wait(self) -> bool:
        """Return whether the current thread must not wait for the end: the end waits for it, or it is a fork's."""
        if super().must_not_wait() or self._connector.workers.is_one():
            return True
        return self._observer is not None and self._observer.is_on_its_thread()

    def end_all(self, now: float) -> None:
        """Reset all connections."""
        self._slots.queued.clear()
        for connection in self.all_connections:
            connection.close("closed", now)

    def tear_down(self) -> None:
        """Wait for the threads, close the factory, and report the last records."""
        self.entrance.keep()
        self._connector.workers.close()
        until = time.monotonic() + _JOIN_TIMEOUT
        # One limit for both joins: a factory or a listener of the program that hangs is left to its daemon thread.
        self._acceptor.join(_JOIN_TIMEOUT)
        self._connector.workers.join(until - time.monotonic())
        self._spare.release()
        if self._pipes is not None:
            self._pipes.close()
        self.workspace.leave()
        self.loop.close()
        self.workspace.end()
        _all.discard(self)
        # After the threads that may still be in a call of it.
        close_factory(self._make_send, self.name)
        if self._observer is not None:
            self._observer.close()

    # -- a forked child ---------------------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """Close this process's copies of the descriptors. The parent's sockets and its epoll are not touched."""
        self.abandon()
        self._statistics.after_fork()
        for connection in self.all_connections:
            connection.after_fork()
        self._slots.connections.clear()
        self._connector.after_fork()
        self._spare.release()
        if self._pipes is not None:
            self._pipes.close()
        self.loop.close()
        if self._receive.listening is not None:
            self._receive.listening.close()


def _after_fork_in_child() -> None:
    for relay in list(_all):
        relay._after_fork()
    _all.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
