"""Changes of a tunnel while it runs: its limits, its route, its listener; and its end, without waiting for it.

Each but the end runs in the relay thread, and is in force when the function returns. A tunnel that is closing stays as
it is. What is changed is :class:`~relay.engine.relay_thread.RelayThread`; this says in which order.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..access.policy import AccessRules
from ..streams.checks import WARM_FOR, check_time
from ..streams.listener import TunnelListener
from ..streams.protocols import Listener, MakeSend
from .acceptor import Acceptor, check_listener, own_listener
from .connector import close_factory
from .limits import Limits
from .options import made_of
from .records import ConnectionSummary
from .relay_thread import RelayThread
from .tunnel import Tunnel, address_of


class _NoAcceptor:
    """The acceptor of a tunnel that has no listener for a while."""

    listening = False

    def listen(self, enabled: bool) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def join(self, seconds: float) -> None:
        """Return at once."""


def update(tunnel: Tunnel, **options: Any) -> None:
    """Change the options of a tunnel; the keywords are those of :class:`relay.Tunnel`.

    All hold for new connections. For open ones ``nconnect`` and ``idle_timeout`` do. The acceptor is chosen again, so
    that a listener may have changed as well. The access lists stay; see :func:`set_rules`.
    """
    chosen = made_of("update", **options, name=tunnel.name)
    policy, limits = chosen.policy(), Limits.of(chosen)

    def change(relay: RelayThread, now: float) -> None:
        old, kept = relay.options, relay.entrance.policy
        relay.entrance.set_policy(dataclasses.replace(policy, rules=kept.rules, admit=kept.admit))
        relay.change_options(dataclasses.replace(chosen, admit=old.admit, on_end=old.on_end), limits, now)

    in_thread(tunnel, change)


def reroute(
    tunnel: Tunnel,
    make_send: MakeSend,
    drain: float | None,
    source: str | None = None,
    spread: float = 0.0,
) -> None:
    """Make the streams of new connections by another factory. The listener stays open.

    Open connections keep their streams. The old factory is closed when the last of them has ended.

    :param drain: seconds after which they are reset; ``None`` for never.
    :param source: from which its connections come; see :class:`relay.Tunnel`.
    :param spread: seconds before that over which they are reset one after the other.
    """

    def change(relay: RelayThread, now: float) -> bool:
        relay.change_factory(make_send, source, drain, spread)
        return True

    if not in_thread(tunnel, change):
        close_factory(make_send, tunnel.name)


def relisten(tunnel: Tunnel, receive: Listener | TunnelListener, drain: float | None, spread: float = 0.0) -> None:
    """Accept from another listener, then close the old one, after the clients that have connected to it.

    :param receive: the new listener, which listens already; the tunnel owns it from now on.
    :param drain: seconds after which the connections that are open now are reset; ``None`` for never.
    :param spread: seconds before that over which they are reset one after the other.
    :raises RuntimeError: if the system has no thread left; ``receive`` stays with the caller then.
    """
    check_listener(receive)
    listener = own_listener(receive)

    def change(relay: RelayThread, now: float) -> Acceptor:
        return relay.change_listener(listener, relay.make_acceptor(listener), drain, spread)

    old = in_thread(tunnel, change)
    if old is None:
        receive.close()
    else:
        tunnel._address = address_of(receive)
        # In the caller's thread, because it may block, as at an SSH server: the relay thread goes on.
        old.close()


def listen_nowhere(tunnel: Tunnel) -> None:
    """Close the listener of a tunnel, after the clients that have connected to it; :func:`relisten` gives it another.

    Open connections go on. For a listener that excludes its successor.
    """
    old = in_thread(tunnel, lambda relay, now: relay.change_listener(TunnelListener(), _NoAcceptor()))
    if old is not None:
        old.close()


def keep_warm(tunnel: Tunnel, count: int, seconds: float = WARM_FOR) -> None:
    """Keep another number of warm streams; 0 closes them. See ``warm`` of :class:`relay.Tunnel`."""
    in_thread(tunnel, lambda relay, now: relay.change_warm(count, seconds))


def set_rules(tunnel: Tunnel, rules: AccessRules | None) -> None:
    """Decide about clients by other rules. The open connections that these deny are reset, with the reason ``denied``.

    :param rules: the access lists, whose files have been read; ``None`` for all clients.
    """

    def change(relay: RelayThread, now: float) -> None:
        relay.entrance.set_rules(rules, relay.all_connections, now)

    in_thread(tunnel, change)


def replace(
    tunnel: Tunnel,
    limits: Mapping[str, Any],
    tune: Callable[[], object],
    *,
    make_send: MakeSend | None = None,
    receive: Listener | TunnelListener | None = None,
    drain: float | None = None,
    spread: float = 0.0,
) -> None:
    """Change several things of a tunnel at once: no client meets a part of them.

    A wider listener and the rules that go with it come together, so do a target and the header that it expects. The
    clients that have connected to the old listener are judged by what it had.

    :param limits: the parameters of :func:`update`.
    :param tune: called in the relay thread; changes what else there is, such as the rules.
    :param make_send: the new factory, for :func:`reroute`; ``None`` to keep the old one.
    :param receive: the new listener, for :func:`relisten`; ``None`` to keep the old one.
    :param drain: seconds after which the connections of the old route and listener are reset; ``None`` for never.
    :param spread: seconds before that over which they are reset one after the other.
    :raises RuntimeError: if the system has no thread left; ``receive`` stays with the caller then.
    """
    if receive is not None:
        check_listener(receive)
    listener = own_listener(receive) if receive is not None else None

    def change(relay: RelayThread, now: float) -> Acceptor:
        old: Acceptor = _NoAcceptor()
        acceptor = relay.make_acceptor(listener) if listener is not None else old
        if listener is not None:
            # First, with the old rules in force: the clients in its backlog came under them.
            old = relay.change_listener(TunnelListener(), _NoAcceptor(), drain, spread)
        tune()
        if make_send is not None:
            reroute(tunnel, make_send, drain, limits.get("source"), spread)
        update(tunnel, **limits)
        if listener is not None:
            relay.set_listener(listener, acceptor)
            relay.update_listening()
        return old

    old = in_thread(tunnel, change)
    if old is None:
        if make_send is not None:
            close_factory(make_send, tunnel.name)
        if receive is not None:
            receive.close()
    elif receive is not None:
        tunnel._address = address_of(receive)
        old.close()


def reset(tunnel: Tunnel, is_meant: Callable[[ConnectionSummary], bool]) -> None:
    """Reset some of the open connections; their reason is ``killed``.

    :param is_meant: called in the relay thread for each of them; returns whether to reset it.
    """

    def change(relay: RelayThread, now: float) -> None:
        for connection in relay.all_connections:
            if not connection.is_closed and is_meant(connection.summary):
                connection.close("killed", now)

    in_thread(tunnel, change)


def start_close(tunnel: Tunnel, drain: float, closed: Callable[[], object], spread: float = 0.0) -> None:
    """Close a tunnel as :meth:`relay.Tunnel.close` does, but do not wait.

    :param drain: seconds that connections may take to finish first; infinite for no limit.
    :param closed: called once at the end, in the tunnel's thread, or here if it has ended; must not block.
    :param spread: seconds before the end of ``drain`` over which the connections are reset one after the other.
    """
    tunnel._relay.start_close(check_time("drain", drain, zero=True), closed, spread)


def in_thread(tunnel: Tunnel, function: Callable[[RelayThread, float], Any]) -> Any:
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
