"""The way in over TCP."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from ..address import TCPAddress, check_place

__all__ = ["BACKLOG", "listen_tcp"]

BACKLOG = 4096  # Linux takes the lower of this and net.core.somaxconn, whose default it is


def listen_tcp(host: str, port: int) -> socket.socket:
    """Listen on TCP.

    :param host: an IPv4 or IPv6 address (no brackets; ``::`` is every interface, for IPv4 too) or a name. One socket
        listens at one address: of those of a name the first IPv4 one that this machine has, else the first IPv6 one.
    :param port: from 0 to 65535; 0 picks a free one, which ``getsockname()`` tells.
    :returns: a bound, listening socket; the caller owns it.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if ``host`` is neither an address nor a name, or ``port`` is out of range.
    :raises OSError: if the name does not resolve, or the address cannot be had (``errno`` tells, such as EADDRINUSE).
    """
    check_place(host, port, least=0)
    place = TCPAddress(host, port)
    failure: OSError | None = None
    for family, address in _addresses(place):
        try:
            return _bound(family, address)
        except OSError as error:
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
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        number = error.errno if isinstance(error, socket.gaierror) else socket.EAI_NONAME
        text = f"{place}: the name cannot be looked up ({error.args[-1]}); is it spelled right?"
        raise socket.gaierror(number, text) from error
    # Clients that know one family alone know IPv4.
    return sorted([(int(family), address) for family, *_, address in found], key=lambda each: each[0] != socket.AF_INET)


def _bound(family: int, address: Any) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        made.bind(address)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made
