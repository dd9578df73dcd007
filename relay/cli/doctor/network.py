"""Facts about the addresses of this machine: which one a connection has or would have, and its interface."""

from __future__ import annotations

import array
import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from typing import Any

from ...eventloop.sockets import Endpoint, format_address

_SIOCGIFADDR = 0x8915  # netdevice(7)


def local_facts(connected: socket.socket) -> dict[str, Any]:
    """Return the two ends of a connected socket; empty if it was closed."""
    with contextlib.suppress(OSError):
        local, peer = connected.getsockname(), connected.getpeername()
        if connected.family == socket.AF_UNIX:
            return {"peer": format_address(peer)}
        return {"local": local[0], "interface": interface_of(local[0]), "peer": format_address(peer)}
    return {}


def source_of(endpoint: Endpoint) -> str:
    """Return the address of this machine from which it would connect to an endpoint; nothing is sent.

    :raises OSError: if there is no route to it.
    """
    with socket.socket(endpoint.family, socket.SOCK_DGRAM) as probe:  # connect(2) of UDP only looks up the route
        probe.connect(endpoint.address)
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str:
    """Return the name of the interface that has an address; empty if that is not known."""
    # The zone of a link-local address is not a part of its bytes.
    wanted = ipaddress.ip_address(address.partition("%")[0])
    with contextlib.suppress(OSError):
        return _of_ipv4(wanted.packed) if wanted.version == 4 else _of_ipv6(wanted.packed.hex())
    return ""


def _of_ipv4(packed: bytes) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            # struct ifreq is 40 bytes at most; the kernel writes into it, so it must be a buffer that can change.
            request = array.array("B", struct.pack("256s", os.fsencode(name)[:15]))
            with contextlib.suppress(OSError):  # it has no IPv4 address
                fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request, True)
                if request.tobytes()[20:24] == packed:
                    return name
    return "lo" if packed[0] == 127 else ""  # one of the whole network that is local


def _of_ipv6(digits: str) -> str:
    with open("/proc/net/if_inet6", encoding="ascii") as table:
        return next((line.split()[-1] for line in table if line.startswith(digits)), "")
