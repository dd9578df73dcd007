"""The public class of a relay, :class:`Tunnel`; the work is done in :mod:`relay.engine.relay_thread`."""

from __future__ import annotations

import dataclasses
import inspect
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, Unpack

from ..access.policy import ClientPolicy
from ..access.senders import NO_HEADERS
from ..addresses.signatures import shows_options
from ..eventloop.sockets import format_address
from ..streams.checks import check_time
from ..streams.dialer import Dialer
from ..streams.listener import TunnelListener
from ..streams.protocols import Listener, MakeSend
from .acceptor import check_listener, own_listener
from .connector import introduce_probes
from .keywords import TunnelKeywords
from .options import TunnelOptions, made_of
from .records import ConnectionRecord, Metrics, Stats
from .relay_thread import RelayThread

_numbers = iter(range(1, 1 << 62))


@shows_options(TunnelOptions)
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
    :param options: {options}
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
        **options: Unpack[TunnelKeywords],
    ) -> None:
        check_listener(receive)
        _check_factory(make_send)
        chosen = made_of("Tunnel.__init__", nconnect=nconnect, timeout=timeout, **options)
        policy = chosen.policy()
        listener = own_listener(receive)
        check_reads_headers(listener, policy)
        if chosen.warm:
            from .warm_pool import check_factory

            check_factory(make_send)
        check_streams(make_send, chosen)
        introduce_probes(make_send, chosen.send_proxy)
        if not chosen.name:
            chosen = dataclasses.replace(chosen, name=f"relay tunnel {next(_numbers)}")
        self.name = chosen.name or ""
        self._address = address_of(receive)
        self._relay = self._start(listener, make_send, chosen, policy)
        if chosen.warm:
            self._relay.keep_warm(chosen.warm, chosen.warm_for)

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

        One that a listener object had begun to accept waits, too.

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
    if isinstance(make_send, Dialer):
        return
    for function in (make_send, type(make_send).__call__):
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("make_send: a coroutine function cannot be called from a thread; give a plain callable")


def check_streams(make_send: MakeSend, options: TunnelOptions) -> None:
    """Check that the streams of a factory can come from a source, and be warm although they begin with a header.

    :raises ValueError: if they cannot.
    """
    if options.source is not None:
        from ..streams.peer_source import check_source

        check_source(options.source, make_send, options.warm)
    if options.warm and options.send_proxy is not None and isinstance(make_send, Dialer) and make_send.introduces:
        raise ValueError(
            "warm: the header of send_proxy goes before the TLS handshake, so that no stream can be opened before its "
            "client is there; set warm to 0"
        )


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
