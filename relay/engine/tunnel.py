"""The public class of a relay, :class:`Tunnel`; the work is done in :mod:`relay.engine.relay_thread`."""

from __future__ import annotations

import inspect
import socket
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, Literal, Self

from ..access.limit import LimitsLike
from ..access.options import check_policy
from ..access.policy import Admit, ClientPolicy, Entries
from ..access.senders import NO_HEADERS
from ..eventloop.sockets import format_address
from ..streams.checks import WARM_FOR, check_count, check_time, check_warm
from ..streams.dialer import Dialer
from ..streams.listener import TunnelListener
from ..types import Listener, MakeSend
from .acceptor import check_listener, own_listener
from .limits import Limits
from .observer import OnEnd, check_callback
from .records import ConnectionRecord, Metrics, Stats
from .relay_thread import RelayThread

__all__ = ["Tunnel", "address_of", "check_reads_headers", "check_streams", "introduce_probes", "part_of_connections"]

_numbers = iter(range(1, 1 << 62))


class Tunnel:
    """Relays connections from a listener to streams that a factory makes; resets each connection after 60 s by default.

    ``timeout=60.0`` limits the whole lifetime of a connection, also while bytes move: a database session or a
    WebSocket is reset after a minute as well. Pass ``timeout=None`` for connections that may last. The limit keeps a
    client that sends a byte now and then from occupying a slot for ever; ``idle_timeout`` and ``nconnect`` are other
    ways. The first connection that it ends is a WARNING in the log; the reason in the records is ``lifetime``.

    A daemon thread accepts from ``receive``, calls ``make_send()`` once for every connection, and moves bytes both
    ways until both directions have ended, a limit is hit, or :meth:`close`. An end of file ends its own direction
    only, so a client that half-closes after its request still receives the reply; ``linger`` limits how long the other
    direction may be silent then. A reset is passed on as a reset. Socket errors never shut the tunnel down.

    :param receive: a bound, listening stream socket (TCP or Unix), or any object with ``accept() -> (stream, peer)``
        and ``close()``. The tunnel owns it and closes it. Its type, for type checkers, is
        :class:`relay.types.Listener`, and that of ``make_send`` :data:`relay.types.MakeSend`.
    :param make_send: called once for every accepted connection; returns a stream: a socket, connected or non-blocking
        with its connect in progress, a :class:`relay.Stream`, or any object with ``recv``, ``send`` or ``sendall``, and
        ``close``. It may block: it is called on a thread of its own unless :func:`relay.nonblocking` marks it. It may
        name the keywords ``peer`` (the client's address), ``identity`` (a :class:`relay.Identity`, or ``None``),
        ``deadline`` (monotonic seconds), ``cancel``, and ``destination``: an object with ``host`` and ``port``, if the
        listener's clients name their targets themselves, else ``None``. Closed with the tunnel if it has a ``close``.
    :param nconnect: the most connections at one time, connecting ones included; −1 for no limit. At the limit clients
        wait in the listen backlog. Half-open ones do not count: a proxy's clients that have not named their target.
    :param timeout: seconds that a connection may last from its acceptance, also while bytes move; ``None`` for none.
    :param connect_timeout: seconds to get the outgoing stream, every handshake included; ``None`` for no limit.
    :param idle_timeout: seconds without a byte moved in either direction; ``None`` for no limit.
    :param linger: seconds without a byte moved in the other direction after one has ended; 0 is allowed; ``None`` for
        no limit.
    :param first_byte_timeout: seconds in which the target must send its first byte after the client's first one was
        passed to it, or end its side; ``None`` for no limit. An upload that gets its answer at the end takes longer.
    :param warm: the streams to keep open for clients to come, at most 1024. A client gets the oldest one, without the
        wait for a connect, and the next one is opened at once. If none is ready, the client waits as without ``warm``.
        What a server sends first is kept. ``nconnect`` does not count these streams. Not for a target that counts
        connections or ends idle ones.
    :param warm_for: seconds after which such a stream is replaced if no client has come.
    :param source: the address of this machine from which relay connects to the target, or ``"peer"`` for an address of
        the loopback that is made of the client's identity, so that the target's own log and limits tell clients apart.
        ``None`` for the address that the system chooses. Not for a target behind hops, nor for one that is not reached
        over TCP.
    :param limit: limits of the clients: how often they may connect, how many at a time, how fast and how much they may
        send and receive. Each is a :class:`relay.Limit`, or a mapping with its keywords.
    :param accept_proxy: the balancers that may connect: addresses, networks such as ``10.0.0.0/8``, and ``unix`` for
        the clients of a Unix socket. Each of their connections begins with a header of the PROXY protocol, whose
        address is the client's; every other one is denied. ``None`` for clients without a header.
    :param send_proxy: the version of the header of the PROXY protocol that relay sends to the target, before the first
        byte of each client; over TLS before the handshake. ``None`` for none.
    :param name: in the log, in ``repr`` and of the thread.
    :param allow: only these clients may connect: rules such as ``"cidr:10.0.0.0/8"``, ``"user:www-data"`` or
        ``"dns:*.svc"``, and files of rules, which are read again when they change; ``None`` for all. relay decides
        before it calls ``make_send``.
    :param deny: these clients may not connect, in the same form; it wins over ``allow``.
    :param admit: called with the :class:`relay.Identity` of each client that the lists allow, or with ``None`` where
        nothing is known of it; returns whether it may connect. It is called on another thread, for several clients at a
        time. An error, or no answer within five seconds, means no. A :class:`relay.Limit`, or a list of them, means
        yes, if these limits let the client in: they apply to it after those of ``limit``. Clients for whom equal limits
        were returned count together, as their ``per`` says.
    :param on_end: called with the :class:`~relay.engine.records.ConnectionRecord` of each connection that has ended, in
        the order in which they ended, on one thread of its own. It may block; 10,000 records wait for it, and further
        ones are dropped with a warning in the log. What it raises is logged. :meth:`close`, with ``drain`` or without,
        and :meth:`join` return after it has been called for every connection. They wait at most five seconds for a slow
        one; then a warning is logged, and the thread goes on with the rest.
    :raises TypeError: if an argument is of a wrong kind; ``make_send`` and ``on_end`` must not be coroutine functions.
    :raises ValueError: if ``receive`` does not listen, or a number is out of range, or if there is ``warm`` and the
        factory takes ``peer``, ``identity`` or ``destination``, or is :func:`relay.dynamic`: its streams depend on the
        client. So they do with ``send_proxy`` and a target over TLS. If connections to the target cannot come from
        ``source``. With ``accept_proxy``, if the listener is none of TCP, of TLS, of a Unix socket or of proxy clients,
        or if no client of it could connect.
    :raises OSError: if the system has no descriptor left. ``receive`` and ``make_send`` stay with the caller then.

    Source: ``i2p.tunnel.Tunnel`` of the I2P project's Python library; the keyword-only parameters are additions.
    """

    def __init__(
        self,
        receive: Listener,
        make_send: MakeSend,
        nconnect: int = -1,
        timeout: float | None = 60.0,
        *,
        connect_timeout: float | None = 30.0,
        idle_timeout: float | None = None,
        linger: float | None = 60.0,
        first_byte_timeout: float | None = None,
        warm: int = 0,
        warm_for: float = WARM_FOR,
        source: str | None = None,
        limit: LimitsLike | None = None,
        accept_proxy: Collection[str] | None = None,
        send_proxy: Literal["v1", "v2"] | None = None,
        name: str | None = None,
        allow: Entries = None,
        deny: Entries = None,
        admit: Admit | None = None,
        on_end: OnEnd | None = None,
    ) -> None:
        check_listener(receive)
        _check_factory(make_send)
        check_warm(warm, warm_for)
        policy = check_policy(
            allow=allow,
            deny=deny,
            admit=admit,
            limit=limit,
            source=source,
            accept_proxy=accept_proxy,
            send_proxy=send_proxy,
        )
        listener = own_listener(receive)
        check_reads_headers(listener, policy)
        if warm:
            from .warm_pool import check_factory

            check_factory(make_send)
        check_streams(make_send, source, send_proxy, warm)
        introduce_probes(make_send, send_proxy)
        check_callback(on_end)
        check_count(nconnect)
        limits = Limits(
            lifetime=check_time("timeout", timeout),
            connect=check_time("connect_timeout", connect_timeout),
            idle=check_time("idle_timeout", idle_timeout),
            linger=check_time("linger", linger, zero=True),
            first_byte=check_time("first_byte_timeout", first_byte_timeout),
        )
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name: expected text, got {type(name).__name__}")
        self.name = name or f"relay tunnel {next(_numbers)}"
        self._address = address_of(receive)
        self._relay = self._start(listener, make_send, nconnect, limits, self.name, on_end, policy)
        if warm:
            self._relay.keep_warm(warm, warm_for)

    def _start(self, *arguments: Any) -> RelayThread:
        """Make the relay thread; a subclass makes another kind."""
        return RelayThread(*arguments)

    @property
    def address(self) -> Any:
        """The listener's address: ``receive.getsockname()``, else the listener object's ``address``, else ``None``."""
        return self._address

    def connections(self) -> list[ConnectionRecord]:
        """Return the records of the open connections, oldest first."""
        return self._relay.connections()

    def recent(self) -> list[ConnectionRecord]:
        """Return the records of the last 100 connections that ended, oldest first, each with its reason."""
        return self._relay.recent()

    def stats(self) -> Stats:
        """Return the figures since the tunnel was made."""
        return self._relay.stats()

    def metrics(self) -> Metrics:
        """Return all counters since the tunnel was made, for monitoring."""
        return self._relay.metrics()

    def kill(self, connection_id: str) -> bool:
        """Reset one open connection. It has ended when this returns; its reason is ``killed``.

        :param connection_id: the ``id`` of its record.
        :returns: whether there was one.
        """
        return self._relay.kill(connection_id)

    def pause(self, close: bool = False) -> None:
        """Accept no client until :meth:`resume`; clients wait in the listen backlog. In force when it returns.

        :param close: whether to reset the open connections.
        """
        self._relay.pause(close)

    def resume(self) -> None:
        """Accept clients again. In force when it returns."""
        self._relay.resume()

    def ping(self, reply: Callable[[], object]) -> bool:
        """Call ``reply`` in the tunnel's thread as soon as that turns, for a watchdog. Never blocks.

        :param reply: must not block.
        :returns: whether it will be called; it is not after the end of the tunnel.
        """
        return self._relay.ping(reply)

    def close(self, drain: float = 0.0) -> None:
        """Stop listening at once, end every connection, and wait until all is done. Idempotent, from any thread.

        Called from inside ``make_send`` or a callback it marks the tunnel as closing and returns. ``on_end`` has been
        called for every connection when it returns, unless it takes longer than five seconds.

        :param drain: seconds that connections may take to finish first; those that are left are reset.
        :raises TypeError: if ``drain`` is not a number.
        :raises ValueError: if it is negative.
        """
        self._relay.close(check_time("drain", drain, zero=True))

    def join(self, timeout: float | None = None) -> None:
        """Wait until the tunnel has ended.

        :param timeout: seconds to wait at most; ``None`` for no limit.
        """
        self._relay.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        kind, relay = type(self).__name__, self._relay
        return f"<{kind} {self.name!r} at {format_address(self._address)}, {relay.count} connections, {relay.state}>"


def _check_factory(make_send: object) -> None:
    if not callable(make_send):
        raise TypeError(f"make_send: expected a callable, got {type(make_send).__name__}")
    for function in (make_send, type(make_send).__call__):
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("make_send: a coroutine function cannot be called from a thread; give a plain callable")


def check_streams(make_send: MakeSend, source: str | None, send_proxy: str | None, warm: int) -> None:
    """Check that the streams of a factory can come from a source, and be warm although they begin with a header.

    :raises ValueError: if they cannot.
    """
    if source is not None:
        from ..streams.peer_source import check_source

        check_source(source, make_send, warm)
    if warm and send_proxy is not None and isinstance(make_send, Dialer) and make_send.introduces:
        raise ValueError(
            "warm: the header of send_proxy goes before the TLS handshake, so that no stream can be opened before its "
            "client is there; set warm to 0"
        )


def introduce_probes(make_send: MakeSend, send_proxy: str | None) -> None:
    """Let the probes of several targets begin with a header that says that they are relay's own, if clients' do."""
    if isinstance(make_send, Dialer) and make_send.alternatives:
        from ..access.proxy_header import build_local

        make_send.introduce_probes(b"" if send_proxy is None else build_local(send_proxy))


def check_reads_headers(receive: TunnelListener, policy: ClientPolicy) -> None:
    """Check that the clients of a listener can begin with a header of the PROXY protocol, if there is to be one.

    :raises ValueError: if relay does not read what these clients send first, or none of them is a sender.
    """
    if policy.accept_proxy is None:
        return
    listening = receive.listening
    if listening is None:
        raise ValueError(f"accept_proxy: {NO_HEADERS}")
    is_unix = listening.family == socket.AF_UNIX
    policy.accept_proxy.check(is_unix=is_unix, host="" if is_unix else str(listening.getsockname()[0]))


def address_of(receive: object) -> Any:
    """Return the address of a listener; ``None`` if it has none."""
    getsockname = getattr(receive, "getsockname", None)
    if callable(getsockname):
        return getsockname()
    return getattr(receive, "address", None)


def part_of_connections(tunnel: Tunnel, first: int, most: int | None) -> tuple[list[ConnectionRecord], int]:
    """Return the records of some open connections, and the number of all: a record of each of thousands takes long.

    :param first: the connections to pass over, the oldest ones.
    :param most: connections at most; ``None`` for all.
    """
    return tunnel._relay.connections(first, most), tunnel._relay.count
