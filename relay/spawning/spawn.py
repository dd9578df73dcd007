""":func:`relay.spawn`: a tunnel in an interpreter of its own."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from ..access.access_list import parse_entries
from ..access.limit import LimitsLike, check_limits, must_stay_whole
from ..access.options import check_policy
from ..addresses.hops import ProxyListen
from ..addresses.parse import parse_listen
from ..engine.acceptor import check_listener
from ..streams.checks import WARM_FOR, check_carriers, check_count, check_time, check_warm, check_workers
from .child_tunnel import ChildTunnel
from .starting import start_child

if TYPE_CHECKING:
    from .pool_tunnel import PoolTunnel

__all__ = ["spawn"]

logger = logging.getLogger("relay")

Workers = int | Literal["auto"]
Carriers = Literal["shared", "per-worker"]


class _Options(TypedDict, total=False):
    """The keywords of :func:`spawn`, except the one that its result depends on."""

    via: Sequence[str]
    nconnect: int
    timeout: float | None
    connect_timeout: float | None
    idle_timeout: float | None
    linger: float | None
    first_byte_timeout: float | None
    warm: int
    warm_for: float
    source: str | None
    allow: Sequence[str] | str | None
    deny: Sequence[str] | str | None
    limit: LimitsLike | None
    accept_proxy: Collection[str] | None
    send_proxy: Literal["v1", "v2"] | None
    name: str | None
    carriers: Carriers


@overload
def spawn(
    listen: str | socket.socket, target: str, *, workers: None = ..., **options: Unpack[_Options]
) -> ChildTunnel: ...


@overload
def spawn(listen: str | socket.socket, target: str, *, workers: Workers, **options: Unpack[_Options]) -> PoolTunnel: ...


def spawn(
    listen: str | socket.socket,
    target: str,
    *,
    via: Sequence[str] = (),
    nconnect: int = -1,
    timeout: float | None = None,
    connect_timeout: float | None = 30.0,
    idle_timeout: float | None = None,
    linger: float | None = 60.0,
    first_byte_timeout: float | None = None,
    warm: int = 0,
    warm_for: float = WARM_FOR,
    source: str | None = None,
    allow: Sequence[str] | str | None = None,
    deny: Sequence[str] | str | None = None,
    limit: LimitsLike | None = None,
    accept_proxy: Collection[str] | None = None,
    send_proxy: Literal["v1", "v2"] | None = None,
    name: str | None = None,
    workers: Workers | None = None,
    carriers: Carriers = "shared",
) -> ChildTunnel | PoolTunnel:
    """Relay in a child process: a :class:`~relay.Tunnel` that the program's own threads cannot slow down.

    Python runs one thread at a time, and a tunnel's thread beside a busy one waits for its turn with every message.
    Here the tunnel has an interpreter of its own. The child ends with the program, also when that is killed. Its log
    records come out of this program's own loggers; a level of ``relay`` that is set later reaches it with the next call
    of :meth:`~ChildTunnel.stats` or any other member that asks it.

    There is no ``on_end``: a callable cannot be sent to another process. :meth:`~ChildTunnel.recent` returns the last
    100 connections that ended, and the log has a line at INFO for each.

    With ``workers=N`` the tunnel runs in N child processes, on as many processors, and all of them accept from the same
    listening socket. The members of the result return totals, and ``nconnect`` is the limit of all of them together. A
    worker that dies is replaced at once: its connections are lost, and no client that waits to be accepted is. A tunnel
    that listens on an SSH server or on I2P, or whose route has a hop over SSH or I2P, stays in one worker, because its
    streams share one connection there; ``carriers="per-worker"`` makes such a connection for the hops in each worker.

    :param listen: an address as for :func:`relay.listen`, or a bound, listening :class:`socket.socket`, which belongs
        to the result from then on.
    :param target: an address as for :func:`relay.target`.
    :param via: the hops on the way, the nearest first.
    :param nconnect: the most connections at one time, connecting ones included; −1 for no limit.
    :param timeout: seconds that a connection may last, whatever it does; ``None`` for ever.
    :param connect_timeout: seconds to get the outgoing stream; ``None`` for ever.
    :param idle_timeout: seconds without a byte moved in either direction; ``None`` for ever.
    :param linger: seconds without a byte moved in the other direction after one has ended; ``None`` for ever.
    :param first_byte_timeout: seconds in which the target must send its first byte after the client's first one; see
        :class:`~relay.Tunnel`.
    :param warm: the streams to keep open for clients to come; see :class:`~relay.Tunnel`.
    :param warm_for: seconds after which such a stream is replaced if no client has come.
    :param source: the address from which relay connects to the target, or ``"peer"``; see :class:`~relay.Tunnel`.
    :param allow: only these clients may connect, as for :class:`~relay.Tunnel`.
    :param deny: these may not.
    :param limit: limits of the clients; see :class:`~relay.Tunnel`. All but those of single connections keep the tunnel
        in one worker, so that they are exact; wrong passwords keep a proxy with a login in one, too.
    :param accept_proxy: the balancers that may connect, each with a header; see :class:`~relay.Tunnel`.
    :param send_proxy: the version of the header that the target gets; see :class:`~relay.Tunnel`.
    :param name: for the log and ``repr``.
    :param workers: the number of child processes, from 1 to 128, or ``"auto"`` for as many as this process may use
        processors. ``None`` for one child that is not replaced when it dies.
    :param carriers: ``"shared"`` or ``"per-worker"``: whether workers share an SSH connection or an I2P session.
    :returns: the tunnel, once it listens.
    :raises AddressError: if an address cannot be understood.
    :raises ValueError: if a limit or the number of workers is out of its range, or the socket does not listen.
    :raises TypeError: if an argument is of the wrong type.
    :raises OSError: if the address cannot be had.
    :raises RelayError: if the child cannot be started.
    """
    receive = _check_listen(listen)
    if not isinstance(target, str):
        raise TypeError(f"target: expected an address, got {type(target).__name__}; a factory needs a Tunnel")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name: expected text, got {type(name).__name__}")
    check_warm(warm, warm_for)
    limits = check_limits(limit)
    check_policy(accept_proxy=accept_proxy, send_proxy=send_proxy)
    options = {
        "nconnect": check_count(nconnect),
        "timeout": check_time("timeout", timeout),
        "connect_timeout": check_time("connect_timeout", connect_timeout),
        "idle_timeout": check_time("idle_timeout", idle_timeout),
        "linger": check_time("linger", linger, zero=True),
        "first_byte_timeout": check_time("first_byte_timeout", first_byte_timeout),
        "warm": warm,
        "warm_for": warm_for,
        "source": source,
        "allow": _entries("allow", allow),
        "deny": _entries("deny", deny),
        "limit": [one.as_table() for one in limits],
        "accept_proxy": None if accept_proxy is None else list(accept_proxy),
        "send_proxy": send_proxy,
        "name": name,
    }
    if workers is not None:
        return _spawn_workers(listen, receive, target, via, options, workers, carriers)
    request = {"listen": None if receive else listen, "target": target, "via": via, "options": options}
    return start_child(ChildTunnel, request, receive)


def _spawn_workers(
    listen: str | socket.socket,
    receive: socket.socket | None,
    target: str,
    via: Sequence[str],
    options: dict[str, Any],
    workers: Workers,
    carriers: Carriers,
) -> PoolTunnel:
    """Return a tunnel with a pool of its own; the parameters are those of :func:`spawn`, checked."""
    from .pool import WorkerPool
    from .recipes import Recipe, bind, carrier_of

    count = check_workers(workers)
    check_carriers(carriers)
    address = listen if isinstance(listen, str) else None
    pinned = carrier_of(address, target, via)
    with contextlib.ExitStack() as undo:
        if receive is None and address is not None:
            receive = bind(parse_listen(address))
            if receive is not None:
                undo.callback(receive.close)
        if carriers == "per-worker" and receive is not None:
            pinned = None
        if must_stay_whole(check_limits(options["limit"])) or (address is not None and _has_login(address)):
            pinned = f"the limits of the clients of {address or 'a socket'}"
        if pinned is not None and count > 1:
            logger.info("%s: one of %d workers relays it, because its streams share %s", address, count, pinned)
        pool = WorkerPool(count)
        undo.callback(pool.close)
        recipe = Recipe(f"{Recipe.__module__}:by_address", {"listen": address, "target": target, "via": list(via)})
        tunnel = pool.open(recipe, receive, options, pinned=pinned)
        tunnel.own(pool)
        undo.pop_all()
    return tunnel


def _has_login(listen: str) -> bool:
    """Return whether clients of an address send passwords, whose wrong ones are counted in one process."""
    address = parse_listen(listen)
    return isinstance(address, ProxyListen) and address.user is not None


def _entries(name: str, given: Sequence[str] | str | None) -> list[str] | None:
    """Return the entries of an access list as a child takes them: with absolute paths.

    :raises TypeError: if one is no text.
    :raises ValueError: if one is neither a rule nor a file.
    """
    if given is None:
        return None
    found = parse_entries(given, name)
    return [f"file:{one}" if isinstance(one, str) else one.text for one in found]


def _check_listen(listen: Any) -> socket.socket | None:
    """The socket to hand to the child, if ``listen`` is one."""
    if isinstance(listen, socket.socket):
        check_listener(listen, "listen")
        return listen
    if not isinstance(listen, str):
        raise TypeError(f"listen: expected an address or a listening socket, got {type(listen).__name__}")
    return None
