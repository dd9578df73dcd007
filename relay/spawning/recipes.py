"""Functions that make the listener and the factory of a tunnel in a worker, from values that fit into a message."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from ..access.limit import Limit, must_stay_whole
from ..addresses.hops import AT_PORT, Listen, ProxyListen, Route, listens_at_server
from ..addresses.i2p import I2PRouter, I2PTarget
from ..addresses.parse import parse_listen
from ..addresses.printable import shown
from ..addresses.resume import place_of
from ..addresses.ssh import SSHServer
from ..addresses.values import ListenAtPort, TLSListen, has_mptcp
from ..api import urls
from ..api.local import listen_privately
from ..transports.tcp import Inherited, listen_tcp
from .wire import Message

MakeListener = Callable[[contextlib.ExitStack], Any]
"""Makes the listener of a tunnel. It may leave calls in the stack, for the time when the tunnel has ended."""


class Recipe(NamedTuple):
    """A function that makes the factory of a tunnel and its listener in a worker."""

    function: str
    """``package.module:function``. It is called with the listening socket, ``None`` if the worker has to listen itself,
    and with the arguments. It returns the factory, and a :data:`MakeListener`."""
    arguments: Message
    """Keywords; values that JSON has."""
    ready: float = 0.0
    """Seconds in which the hops must be up before it listens; 0 if they need not be."""

    def make(self, receive: socket.socket | None) -> tuple[Any, MakeListener]:
        """Call the function.

        :param receive: the listening socket, if there is one; it stays with the caller until the listener is made.
        :raises Exception: what the function raises.
        """
        module, name = self.function.split(":")
        made: tuple[Any, MakeListener] = getattr(import_module(module), name)(receive, **self.arguments)
        return made


def by_address(
    receive: socket.socket | None, *, listen: str | None, target: str, via: Sequence[str]
) -> tuple[Any, MakeListener]:
    """Make the factory and the listener that two addresses name; the recipe of :func:`relay.spawn`.

    :param receive: the listening socket, if there is one.
    :param listen: an address as for :func:`relay.listen`; ``None`` for a socket of the caller, and without one for a
        private Unix socket.
    :param target: an address as for :func:`relay.target`.
    :param via: the hops, the nearest first.
    :raises Exception: as for :func:`relay.target`; the listener raises as :func:`relay.listen` does.
    """

    def make_listener(at_end: contextlib.ExitStack) -> Any:
        if receive is not None:
            return receive if listen is None else listen_at(parse_listen(listen), receive)
        return at_end.enter_context(listen_privately()) if listen is None else urls.listen(listen)

    return urls.target(target, via=via), make_listener


def bind(address: Listen) -> socket.socket | None:
    """Return the listening socket that the workers of a tunnel share; ``None`` if only one process can listen there.

    :raises OSError: as for :func:`relay.listen`.
    """
    if listens_at_server(address):
        return None
    if isinstance(address, AT_PORT):
        return listen_tcp(address.host, address.port, mptcp=has_mptcp(address))
    made: socket.socket = urls.listener(address)
    return made


def listen_at(address: Listen, receive: socket.socket) -> Any:
    """Return the listener of an address for a socket that listens there already.

    :param receive: from :func:`bind`; the listener owns it, or a duplicate of it.
    :raises Exception: as for :func:`relay.listen`; ``receive`` stays with the caller then.
    """
    if not isinstance(address, TLSListen | ProxyListen | ListenAtPort):
        return receive
    # The port that the kernel chose, where the address has 0.
    host, port, *_ = receive.getsockname()
    made = urls.listener(dataclasses.replace(address, host=host, port=port), inherited=Inherited([receive]))
    # The listener has a duplicate; two descriptors of one socket in a worker would keep it open after its close.
    receive.close()
    return made


def why_one_process(
    listen: Listen | None, routed: Sequence[tuple[Route, object]], limits: Iterable[Limit], *, per_worker: bool
) -> str:
    """Return why one process relays all of a tunnel, as the end of a sentence; empty if several workers can share it.

    :param listen: where it listens; ``None`` for a socket.
    :param routed: its targets, each with the hops before it.
    :param limits: of its clients.
    :param per_worker: whether each worker may make connections over SSH and I2P of its own.
    """
    if listens_at_server(listen):
        return f"because only one can listen at {shown(str(listen))}"
    if must_stay_whole(limits):
        return "so that the limits of its clients are exact"
    if isinstance(listen, ProxyListen) and listen.user is not None:
        return "so that each wrong password counts"
    if len(routed) > 1:
        return "because it has several targets, whose state it knows"
    ((via, end),) = routed
    carriers = [
        hop
        for hop in (*map(place_of, via), end)
        if isinstance(hop, SSHServer | I2PRouter | I2PTarget) or getattr(hop, "scheme", "") == "port"
    ]
    if carriers and not per_worker:
        return f"because its streams share a connection to {shown(str(carriers[0]))}; see carrier_sharing"
    return ""
