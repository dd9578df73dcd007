""":func:`relay.spawn`: a tunnel in an interpreter of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from ..access.access_list import parse_entries
from ..access.limit import check_limits
from ..addresses.parse import parse_hops, parse_listen, parse_target
from ..addresses.signatures import shows_options
from ..engine.acceptor import check_listener
from ..engine.keywords import SharedKeywords
from ..engine.options import TunnelOptions, made_of, tunnel_options
from ..streams.checks import check_carrier_sharing, check_workers
from .child_tunnel import ChildTunnel
from .pool import WorkerPool, open_child
from .pool_tunnel import PoolTunnel
from .recipes import Recipe, bind, why_one_process

if TYPE_CHECKING:
    from ..access.policy import Entries

logger = logging.getLogger("relay")

Workers = int | Literal["auto"]
CarrierSharing = Literal["shared", "per-worker"]


class _Keywords(SharedKeywords, total=False):
    """Keywords of :func:`spawn` that are options of the tunnel."""

    nconnect: int
    timeout: float | None


class _AllKeywords(_Keywords, total=False):
    """Its keywords, except the one that its result depends on."""

    via: Sequence[str]
    carrier_sharing: CarrierSharing


_NOT_SENT = tuple(name for name, one in tunnel_options(TunnelOptions).items() if one.workers == "none")


@overload
def spawn(
    listen: str | socket.socket, target: str, *, workers: None = ..., **options: Unpack[_AllKeywords]
) -> ChildTunnel: ...


@overload
def spawn(
    listen: str | socket.socket, target: str, *, workers: Workers, **options: Unpack[_AllKeywords]
) -> PoolTunnel: ...


@shows_options(TunnelOptions, own=_NOT_SENT, brief=TunnelOptions, defaults={"timeout": None})
def spawn(
    listen: str | socket.socket,
    target: str,
    *,
    via: Sequence[str] = (),
    workers: Workers | None = None,
    carrier_sharing: CarrierSharing = "shared",
    **options: Unpack[_Keywords],
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
    streams share one connection there; ``carrier_sharing="per-worker"`` makes such a connection for the hops in each
    worker.

    :param listen: an address as for :func:`relay.listen`, or a bound, listening :class:`socket.socket`, which belongs
        to the result from then on.
    :param target: an address as for :func:`relay.target`.
    :param via: the hops, the nearest first.
    :param limit: limits of the clients; see :class:`~relay.Tunnel`. All but those of single connections keep the tunnel
        in one worker, so that they are exact; wrong passwords keep a proxy with a login in one, too.
    :param options: {options}
    :param workers: the number of child processes, from 1 to 128, or ``"auto"`` for as many as this process may use
        processors. ``None`` for one child that is not replaced when it dies.
    :param carrier_sharing: ``"shared"`` or ``"per-worker"``: whether workers share an SSH connection or an I2P session.
    :returns: the tunnel, once it listens.
    :raises AddressError: if an address cannot be understood.
    :raises ValueError: if a limit or the number of workers is out of its range, or the socket does not listen.
    :raises TypeError: if an argument is of the wrong type.
    :raises OSError: if the address cannot be had.
    :raises RelayError: if the child cannot be started.
    """
    if "carriers" in options:  # until 0.3
        text = "carriers: it is carrier_sharing now; relay 0.3 will not know it"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        carrier_sharing = options.pop("carriers")  # type: ignore[typeddict-item]
    receive = _check_listen(listen)
    if not isinstance(target, str):
        raise TypeError(f"target: expected an address, got {type(target).__name__}; a factory needs a Tunnel")
    chosen = made_of("spawn", *_NOT_SENT, **{"timeout": None, **options})
    allow, deny = _entries("allow", chosen.allow), _entries("deny", chosen.deny)
    message = dataclasses.replace(chosen, allow=allow, deny=deny).as_message()
    arguments = {"listen": None if receive else listen, "target": target, "via": list(via)}
    recipe = Recipe(f"{Recipe.__module__}:by_address", arguments)
    if workers is None:
        return open_child(ChildTunnel, recipe, receive, message)
    return _spawn_workers(recipe, receive, message, workers, carrier_sharing)


def _spawn_workers(
    recipe: Recipe, receive: socket.socket | None, options: dict[str, Any], workers: Workers, sharing: CarrierSharing
) -> PoolTunnel:
    """Return a tunnel with a pool of its own; the parameters are those of :func:`spawn`, checked."""
    count = check_workers(workers)
    check_carrier_sharing(sharing)
    address, target, via = recipe.arguments["listen"], recipe.arguments["target"], recipe.arguments["via"]
    where = None if address is None else parse_listen(address)
    hops = parse_hops(via, target)
    routed = [(hops, parse_target(target, hops[-1] if hops else None))]
    why = why_one_process(where, routed, check_limits(options["limit"]), per_worker=sharing == "per-worker")
    if why and count > 1:
        logger.info("%s: one of %d workers relays it, %s", address or "a socket", count, why)
    with contextlib.ExitStack() as undo:
        if receive is None and where is not None:
            receive = bind(where)
            if receive is not None:
                undo.callback(receive.close)
        tunnel = WorkerPool(1 if why else count).open_only(PoolTunnel, recipe, receive, options)
        undo.pop_all()
    return tunnel


def _entries(name: str, given: Entries) -> list[str] | None:
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
