"""Changes of a tunnel while it runs: its limits, its route, its listener.

Each runs in the relay thread, and is in force when the function returns. A tunnel that is closing stays as it is. This
is a part of :class:`~relay.engine.relay_thread.RelayThread` in a file of its own, so it uses what is private there.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection
from typing import Any

from ..streams.checks import WARM_FOR
from .acceptor import Acceptor, SocketAcceptor, adapt_acceptor, check_listener
from .connector import close_factory
from .limits import Limits
from .records import ConnectionState
from .relay_thread import RelayThread
from .tunnel import Tunnel, address_of

__all__ = ["deny", "listen_nowhere", "relisten", "reroute", "update"]

_WITHOUT_ROUTE = (ConnectionState.REQUESTING, ConnectionState.QUEUED)  # they get the route of the time when it is made


class _NoAcceptor:
    """The acceptor of a tunnel that has no listener for a while."""

    listening = False

    def listen(self, enabled: bool) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def join(self, seconds: float) -> None:
        """Return at once."""


def update(
    tunnel: Tunnel,
    *,
    nconnect: int,
    timeout: float | None,
    connect_timeout: float | None,
    idle_timeout: float | None,
    linger: float | None,
    warm: int = 0,
    warm_for: float = WARM_FOR,
) -> None:
    """Change the limits of a tunnel; the parameters are those of :class:`relay.Tunnel`, and have been checked.

    All hold for new connections. For open ones ``nconnect`` and ``idle_timeout`` do. The acceptor is chosen again, so
    that a listener may have changed as well.
    """
    limits = Limits(timeout, connect_timeout, idle_timeout, linger)

    def change(relay: RelayThread, now: float) -> None:
        before, relay.limits = relay.limits, limits
        relay._statistics.lifetime = limits.lifetime
        relay._set_limit(nconnect)
        _limit_handshakes(relay)
        for connection in relay.all_connections if limits.idle != before.idle else ():
            connection.deadline.change_idle(limits.idle, now)
        relay._acceptor = adapt_acceptor(relay, relay._acceptor, relay._receive)
        relay._connector.keep_warm(warm, warm_for)
        relay._serve_queue(now)
        relay.update_listening()

    _in_thread(tunnel, change)


def reroute(tunnel: Tunnel, make_send: Callable[..., Any], drain: float | None) -> None:
    """Make the streams of new connections by another factory. The listener stays open.

    Open connections keep their streams. The old factory is closed when the last of them has ended.

    :param drain: seconds after which they are reset; ``None`` for never.
    """

    def change(relay: RelayThread, now: float) -> bool:
        old, relay._make_send = relay._make_send, make_send
        relay._connector.set_factory(make_send)
        close = functools.partial(close_factory, old, relay.name)
        _retire(relay, lambda: relay._connector.submit(close), drain)
        return True

    if not _in_thread(tunnel, change):
        close_factory(make_send, tunnel.name)


def relisten(tunnel: Tunnel, receive: Any, drain: float | None) -> None:
    """Accept from another listener, then close the old one, after the clients that have connected to it.

    :param receive: the new listener, which listens already; the tunnel owns it from now on.
    :param drain: seconds after which the connections that are open now are reset; ``None`` for never.
    :raises RuntimeError: if the system has no thread left; ``receive`` stays with the caller then.
    """
    check_listener(receive)

    def change(relay: RelayThread, now: float) -> Acceptor:
        return _accept_from(relay, receive, relay._make_acceptor(receive), drain, now)

    old = _in_thread(tunnel, change)
    if old is None:
        receive.close()
    else:
        tunnel._address = address_of(receive)
        old.close()


def listen_nowhere(tunnel: Tunnel) -> None:
    """Close the listener of a tunnel, after the clients that have connected to it; :func:`relisten` gives it another.

    Open connections go on. For a listener that excludes its successor.
    """
    old = _in_thread(tunnel, lambda relay, now: _accept_from(relay, None, _NoAcceptor(), None, now))
    if old is not None:
        old.close()


def deny(tunnel: Tunnel, peers: Collection[Any]) -> None:
    """Reset the open connections of these clients; the reason is ``denied``."""

    def change(relay: RelayThread, now: float) -> None:
        for connection in relay.all_connections:
            if connection.summary.peer in peers:
                connection.close("denied", now)

    _in_thread(tunnel, change)


def _accept_from(relay: RelayThread, receive: Any, acceptor: Acceptor, drain: float | None, now: float) -> Acceptor:
    """Accept from another listener; return the acceptor of the old one, which is still to be closed."""
    old = relay._acceptor
    if isinstance(old, SocketAcceptor):
        old.take_backlog(now)  # while it is the tunnel's, which stops it when there is no room left
    relay._acceptor, relay._receive = acceptor, receive
    _limit_handshakes(relay)
    old.listen(False)
    relay.update_listening()
    _retire(relay, None, drain)
    return old


def _limit_handshakes(relay: RelayThread) -> None:
    if hasattr(relay._receive, "handshake_timeout"):
        relay._receive.handshake_timeout = relay.limits.handshake


def _retire(relay: RelayThread, over: Callable[[], object] | None, drain: float | None) -> None:
    """Begin a generation with the connections that have the old route and listener."""
    routed = [one for one in relay.all_connections if one.state not in _WITHOUT_ROUTE]
    relay._generations.begin(routed, over, drain)


def _in_thread(tunnel: Tunnel, function: Callable[[RelayThread, float], Any]) -> Any:
    """Call a function in the relay thread; return its result, ``None`` if the tunnel is closing, or raise its error."""
    relay = tunnel._relay
    results: list[Any] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            if not relay.is_closing:
                results.append(function(relay, time.monotonic()))
        except Exception as error:  # noqa: BLE001  (it is raised in the thread that waits)
            errors.append(error)

    relay.run_in_thread(call)
    if errors:
        raise errors[0]
    return results[0] if results else None
