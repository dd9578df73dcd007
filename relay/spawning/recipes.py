"""Functions that make the listener and the factory of a tunnel in a worker, from values that fit into a message."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from ..addresses.hops import Hop, Listen, ProxyListen, listens_at_server
from ..addresses.i2p import I2PListen, I2PRouter, I2PTarget
from ..addresses.parse import parse_hops, parse_listen, parse_target
from ..addresses.ssh import SSHListen, SSHServer
from ..addresses.values import TCPAddress, TLSListen
from ..api import urls
from ..transports.tcp import Inherited, listen_tcp
from .wire import Message

__all__ = ["Recipe", "bind", "carrier_of", "listen_at"]

_AT_PORT = TCPAddress | TLSListen | ProxyListen


class Recipe(NamedTuple):
    """A function that makes the listener and the factory of a tunnel in a worker."""

    function: str
    """``package.module:function``. It is called with the listening socket, ``None`` if it has to listen itself, and
    with the arguments; it returns the listener and the factory."""
    arguments: Message
    """Keywords; values that JSON has."""

    def make(self, receive: socket.socket | None) -> tuple[Any, Any]:
        """Call the function.

        :param receive: the listening socket, if there is one; it stays with the caller if the function raises.
        :raises Exception: what the function raises.
        """
        module, name = self.function.split(":")
        made: tuple[Any, Any] = getattr(import_module(module), name)(receive, **self.arguments)
        return made


def by_address(
    receive: socket.socket | None, *, listen: str | None, target: str, via: Sequence[str]
) -> tuple[Any, Any]:
    """Make the listener and the factory that two addresses name; the recipe of :func:`relay.spawn`.

    :param receive: the listening socket, if there is one.
    :param listen: an address as for :func:`relay.listen`; ``None`` for a socket of the caller.
    :param target: an address as for :func:`relay.target`.
    :param via: the hops on the way, the nearest first.
    :raises Exception: as for :func:`relay.listen` and :func:`relay.target`.
    """
    make_send = urls.target(target, via=via)
    try:
        if listen is None:
            return receive, make_send
        if receive is None:
            return urls.listen(listen), make_send
        return listen_at(parse_listen(listen), receive), make_send
    except BaseException:
        make_send.close()
        raise


def bind(address: Listen) -> socket.socket | None:
    """Return the listening socket that the workers of a tunnel share; ``None`` if only one process can listen there.

    :raises OSError: as for :func:`relay.listen`.
    """
    if listens_at_server(address):
        return None
    if isinstance(address, _AT_PORT):
        return listen_tcp(address.host, address.port, mptcp=getattr(address, "mptcp", False))
    made: socket.socket = urls.listener(address)
    return made


def listen_at(address: Listen, receive: socket.socket) -> Any:
    """Return the listener of an address for a socket that listens there already.

    :param receive: from :func:`bind`; the listener owns it, or a duplicate of it.
    :raises Exception: as for :func:`relay.listen`; ``receive`` stays with the caller then.
    """
    if not isinstance(address, TLSListen | ProxyListen):
        return receive
    host, port, *_ = receive.getsockname()
    made = urls.listener(dataclasses.replace(address, host=host, port=port), inherited=Inherited([receive]))
    receive.close()
    return made


def carrier_of(listen: str | None, target: str, via: Sequence[str]) -> str | None:
    """Return the name of the carrier under a tunnel, which has to stay in one process; ``None`` without one.

    :param listen: and the others: as for :func:`by_address`.
    :raises AddressError: if an address cannot be understood.
    """
    hops = parse_hops(via, target)
    ends = (parse_target(target, hops[-1] if hops else None), None if listen is None else parse_listen(listen))
    found: list[Hop | object] = [hop for hop in hops if isinstance(hop, SSHServer | I2PRouter)]
    found += [end for end in ends if isinstance(end, I2PTarget | SSHListen | I2PListen)]
    return str(getattr(found[0], "server", found[0])) if found else None
