"""The way out over TCP."""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Sequence

from ..address import TCPAddress, check_place
from ..errors import ConnectError
from ..race import Direct, Endpoint, resolved

__all__ = ["tcp"]


def tcp(host: str, port: int) -> Direct:
    """A factory that connects over TCP: to the first of the host's addresses that answers (RFC 8305).

    :param host: an IPv4 or IPv6 address (no brackets, a zone is allowed) or a name, looked up for every connection.
    :param port: from 1 to 65535.
    :returns: a callable for :class:`relay.Tunnel` that returns a connected :class:`relay.Stream`, and raises
        :class:`relay.ConnectError` if it cannot.
        It takes the keywords ``peer``, ``deadline`` and ``cancel``, as all factories do; see :func:`relay.target`.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if ``host`` is neither an address nor a name, or ``port`` is out of range.
    """
    check_place(host, port)
    target = str(TCPAddress(host, port))
    if (endpoint := _literal(host, port)) is not None:
        return Direct(target, lambda: (endpoint,), literal=True)
    name = _Name(host, port)
    return Direct(target, functools.partial(resolved, name), literal=False, name=name)


def _literal(host: str, port: int) -> Endpoint | None:
    """The endpoint of an address that is written out; ``None`` for a name or a zone, which are looked up."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return Endpoint(socket.AF_INET, (host, port))
    return None if address.scope_id else Endpoint(socket.AF_INET6, (host, port, 0, 0))


class _Name:
    """A host name and a port; see :class:`relay.race.Name`."""

    __slots__ = ("host", "port")

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    def look_up(self) -> Sequence[Endpoint]:
        literal, percent, zone = self.host.partition("%")
        if percent:
            index = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
            return [Endpoint(socket.AF_INET6, (literal, self.port, 0, index))]
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        return [Endpoint(family, address) for family, _, _, _, address in found]

    def endpoints(self, found: Sequence[Endpoint] | BaseException) -> Sequence[Endpoint]:
        if isinstance(found, (OSError, UnicodeError)) and not isinstance(found, ConnectError):
            _, percent, zone = self.host.partition("%")
            what = f"there is no interface {zone}" if percent else "the name cannot be looked up"
            text = found.strerror if isinstance(found, OSError) else found
            raise ConnectError(f"{TCPAddress(self.host, self.port)}: {what} ({text}); is it spelled right?") from found
        if isinstance(found, BaseException):
            raise found
        # Another port may have been asked for by who had it looked up.
        return [Endpoint(family, (address[0], self.port, *address[2:])) for family, address in found]
