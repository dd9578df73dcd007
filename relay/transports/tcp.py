"""TCP: connecting to a host and a port, and listening there."""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import os
import socket
from collections.abc import Sequence
from typing import Any

from ..addresses.values import TCPAddress, check_host_port, refuse_onion
from ..errors import ConnectError
from ..eventloop.sockets import MPTCP, Endpoint, check_mptcp, duplicate
from ..streams.connect import SocketDialer
from ..streams.lookups import resolved


def tcp(host: str, port: int, *, mptcp: bool = False) -> SocketDialer:
    """A factory that connects over TCP: to the first of the host's addresses that answers (RFC 8305).

    :param host: an IPv4 or IPv6 address (no brackets, a zone is allowed) or a name, looked up for every connection.
    :param port: from 1 to 65535.
    :param mptcp: whether to use Multipath TCP (RFC 8684) with a server that has it; one that does not gets plain TCP.
    :returns: a callable for :class:`relay.Tunnel` that returns a connected :class:`relay.Stream`, and raises
        :class:`relay.ConnectError` if it cannot.
        It takes the keywords ``peer``, ``deadline`` and ``cancel``, as all factories do; see :func:`relay.target`.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if ``host`` is neither an address nor a name, ``port`` is out of range, or the system has no
        MPTCP although it is required; :class:`relay.AddressError` for a name in ``.onion``, which a hop must resolve.
    """
    check_host_port(host, port)
    refuse_onion(host)
    protocol = _protocol(mptcp=mptcp)
    target = str(TCPAddress(host, port))
    if (endpoint := _literal(host, port, protocol)) is not None:
        return SocketDialer(target, lambda: (endpoint,), literal=True)
    name = _Name(host, port, protocol)
    return SocketDialer(target, functools.partial(resolved, name), literal=False, name=name)


def _protocol(*, mptcp: bool) -> int:
    """Return the protocol of a socket."""
    if not isinstance(mptcp, bool):
        raise TypeError(f"mptcp: expected True or False, got {type(mptcp).__name__}")
    if mptcp:
        check_mptcp()
    return MPTCP if mptcp else 0


def _literal(host: str, port: int, protocol: int) -> Endpoint | None:
    """The endpoint of an address that is written out; ``None`` for a name or a zone, which are looked up."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return Endpoint(socket.AF_INET, (host, port), protocol=protocol)
    return None if address.scope_id else Endpoint(socket.AF_INET6, (host, port, 0, 0), protocol=protocol)


class _Name:
    """A host name and a port; see :class:`relay.streams.lookups.Name`."""

    __slots__ = ("host", "port", "_protocol")

    def __init__(self, host: str, port: int, protocol: int) -> None:
        self.host = host
        self.port = port
        self._protocol = protocol

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
            what = f"there is no interface {zone}" if percent else "cannot resolve the host name"
            text = found.strerror if isinstance(found, OSError) else found
            raise ConnectError(f"{TCPAddress(self.host, self.port)}: {what} ({text}); check the spelling") from found
        if isinstance(found, BaseException):
            raise found
        # Another port and protocol may have been asked for by who had it looked up.
        return [
            Endpoint(one.family, (one.address[0], self.port, *one.address[2:]), protocol=self._protocol)
            for one in found
        ]


class Inherited:
    """Sockets that listen already: a listener takes over the one at its address, instead of binding beside it.

    It gets a duplicate, so both share the backlog, and no client is refused when the other owner closes its own.

    :param sockets: that listen; they stay with their owners, which may close them at any time, on other threads.
    :param at_any_port: those of which a listener that asks for any free port keeps the port, too.
    """

    def __init__(self, sockets: Sequence[socket.socket] = (), at_any_port: Sequence[socket.socket] = ()) -> None:
        self.taken: list[socket.socket] = []
        """Those that were taken over so far."""
        self._sockets = sockets
        self._at_any_port = at_any_port

    def take(self, family: int, address: Any, protocol: int = 0) -> socket.socket | None:
        """Return a duplicate of the socket at an address; ``None`` if there is none, or its owner has closed it.

        :param family: such as ``AF_INET``.
        :param address: in the form of that family.
        :param protocol: ``IPPROTO_MPTCP``, or 0 for the one of the family.
        """
        is_port = family != socket.AF_UNIX
        is_any = is_port and not address[1]
        wanted = tuple(address[:2]) if is_port else address
        for one in self._at_any_port if is_any else self._sockets:
            if one.family != family or (one.proto == MPTCP) != (protocol == MPTCP):
                continue
            with contextlib.suppress(_ClosedError):
                found = _name_of(one)
                place = found[:2] if is_port else found
                if place[0] == wanted[0] if is_any else place == wanted:
                    heir = _duplicate(one, found)
                    self.taken.append(one)
                    return heir
        return None


class _ClosedError(Exception):
    """A socket that its owner has closed."""


def _name_of(one: socket.socket) -> Any:
    try:
        return one.getsockname()
    except OSError as error:
        raise _ClosedError from error


def _duplicate(one: socket.socket, name: Any) -> socket.socket:
    try:
        made = duplicate(one)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOTSOCK):
            raise
        raise _ClosedError from error
    try:
        if _name_of(made) != name:  # its number was that of another socket by then
            raise _ClosedError
    except _ClosedError:
        made.close()
        raise
    return made


BACKLOG = 4096  # Linux takes the lower of this and net.core.somaxconn, whose default it is


def listen_tcp(host: str, port: int, *, mptcp: bool = False, inherited: Inherited | None = None) -> socket.socket:
    """Listen on TCP.

    :param host: an IPv4 or IPv6 address (no brackets; ``::`` is every interface, for IPv4 too) or a name. One socket
        listens at one address: of those of a name the first IPv4 one that this machine has, else the first IPv6 one.
    :param port: from 0 to 65535; 0 picks a free one, which ``getsockname()`` tells.
    :param mptcp: whether to use Multipath TCP (RFC 8684) with clients that have it; the others get plain TCP.
    :param inherited: of which it may take one over; ``None`` for none.
    :returns: a bound, listening socket; the caller owns it.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if ``host`` is neither an address nor a name, ``port`` is out of range, or the system has no
        MPTCP although it is required.
    :raises OSError: if the name does not resolve, or the address cannot be had (``errno`` tells, such as EADDRINUSE).
    """
    check_host_port(host, port, least=0)
    refuse_onion(host)
    place, protocol = TCPAddress(host, port), _protocol(mptcp=mptcp)
    failure: OSError | None = None
    for family, address in _addresses(place):
        try:
            known = inherited.take(family, address, protocol) if inherited is not None else None
            return known if known is not None else _bound(family, address, protocol)
        except OSError as error:
            # The first one's: it is of the family that is preferred.
            failure = failure or error
    assert failure is not None  # getaddrinfo returns no empty list
    number = failure.errno or 0
    raise OSError(number, f"{place}: {os.strerror(number)}{_ADVICE.get(number, '')}") from failure


_ADVICE = {
    errno.EADDRINUSE: "; another program listens there, and port 0 picks a free one",
    errno.EADDRNOTAVAIL: "; this machine has no such address",
    errno.EACCES: "; ports below 1024 are the administrator's",
}


def _addresses(place: TCPAddress) -> list[tuple[int, Any]]:
    if (endpoint := _literal(place.host, place.port, 0)) is not None:
        return [(endpoint.family, endpoint.address)]
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        number = error.errno if isinstance(error, socket.gaierror) else socket.EAI_NONAME
        text = f"{place}: cannot resolve the host name ({error.args[-1]}); check the spelling"
        raise socket.gaierror(number, text) from error
    # Clients that know one family alone know IPv4.
    return sorted([(int(family), address) for family, *_, address in found], key=lambda each: each[0] != socket.AF_INET)


def _bound(family: int, address: Any, protocol: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        # Connections of the process before this one may be in TIME_WAIT for a minute, and would keep the port.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Set in any case, as its default is a sysctl: the same address must mean the same on each machine.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        made.bind(address)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made
