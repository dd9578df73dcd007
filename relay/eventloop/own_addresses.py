"""The addresses of this machine: whether a connect to one gets to those who listen at another."""

from __future__ import annotations

import ipaddress
import socket

_IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_same(host: str, listen: str) -> bool:
    """Return whether a connect to a host gets to those who listen at another; no name is looked up."""
    if host.lower() == listen.lower():
        return True
    bound = _numbers(listen)[:1]  # localhost is one address to listen on
    for number in _numbers(host):
        reached = _loopback(number) if number.is_unspecified else number
        for one in bound:
            if reached == one or (one.is_unspecified and one.version >= reached.version and _is_own(reached)):
                return True
    return False


def _numbers(host: str) -> list[_IPAddress]:
    """Return the addresses of a host that are known without a look-up."""
    if host.lower() == "localhost":
        return [ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1")]
    try:
        number = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return []
    return [getattr(number, "ipv4_mapped", None) or number]


def _loopback(number: _IPAddress) -> _IPAddress:
    """Return where the system connects to for ``0.0.0.0`` or ``::``."""
    return ipaddress.ip_address("127.0.0.1" if number.version == 4 else "::1")


def _is_own(number: _IPAddress) -> bool:
    """Return whether an address is one of this machine."""
    if number.is_loopback:
        return True
    with socket.socket(socket.AF_INET if number.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(number), 0))
        except OSError:
            return False
    return True
