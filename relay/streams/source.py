"""The address of this machine that outgoing TCP connections come from: one for all of them, or one for each client."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..addresses.printable import shown
from ..addresses.values import is_loopback
from ..errors import ConnectError
from ..eventloop.sockets import Endpoint

PEER = "peer"
"""The value of the option ``source`` for an address that is made of the client's identity."""


class Source(NamedTuple):
    """One address of this machine."""

    family: int
    host: str

    @property
    def address(self) -> Any:
        """The address for ``bind(2)``; the system chooses the port."""
        return (self.host, 0) if self.family == socket.AF_INET else (self.host, 0, 0, 0)

    @property
    def family_name(self) -> str:
        """``IPv4`` or ``IPv6``."""
        return "IPv4" if self.family == socket.AF_INET else "IPv6"

    def of(self, target: str, endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
        """Return the endpoints that can be reached from this address, each with it as its source.

        :param target: the name of the target, for the error.
        :param endpoints: the addresses of the target.
        :raises ConnectError: if there is none.
        """
        own = [endpoint._replace(source=self.address) for endpoint in endpoints if endpoint.family == self.family]
        if endpoints and not own:
            raise ConnectError(
                f"{target}: it has no {self.family_name} address, as the source {self.host} is; set source to an "
                "address of the target's family"
            )
        if is_loopback(self.host):  # the system connects from there to the loopback only
            own = [endpoint for endpoint in own if is_loopback(endpoint.address[0])]
            if endpoints and not own:
                raise ConnectError(
                    f"{target}: it is not on the loopback, as the source {self.host} is; set source to an address of "
                    "the network that leads there"
                )
        return own


def parse_source(text: str) -> Source | None:
    """Return the address that the option ``source`` names; ``None`` for ``peer``.

    :param text: ``peer``, or an IPv4 or IPv6 address of this machine, without a zone.
    :raises TypeError: if it is no text.
    :raises ValueError: if it is neither.
    """
    if not isinstance(text, str):
        raise TypeError(f"source: expected text, got {type(text).__name__}")
    if text == PEER:
        return None
    try:
        address = ipaddress.ip_address(text)
        # 0.0.0.0 means any address, so that the option would do nothing.
        if address.is_unspecified or address.is_multicast or (address.version == 6 and address.scope_id):
            raise ValueError(text)
    except ValueError:
        raise ValueError(
            f"source: expected peer or an IP address of this machine, got {shown(text)!r}; give one address, without a "
            "port or zone"
        ) from None
    return Source(socket.AF_INET if address.version == 4 else socket.AF_INET6, str(address))
