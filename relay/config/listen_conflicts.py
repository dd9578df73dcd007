"""The addresses on which the tunnels of a file listen: each has one tunnel."""

from __future__ import annotations

from typing import NamedTuple

from ..addresses.hops import ProxyListen
from ..addresses.i2p import I2PListen
from ..addresses.ssh import SSHListen
from ..addresses.values import SystemdListen, TCPAddress, TLSListen, UnixAddress
from .models import Tunnel

__all__ = ["Claim", "ListenTable", "exclude_each_other"]

_EVERY_IPV4 = "0.0.0.0"  # noqa: S104


class Claim(NamedTuple):
    """The tunnel of an address, and the line of the file."""

    name: str
    line: int


class ListenTable:
    """The addresses that have a tunnel."""

    def __init__(self) -> None:
        self._places: dict[object, Claim] = {}
        self._ports: dict[int, list[tuple[str, Claim]]] = {}

    def claim(self, listen: object, name: str, line: int, tunnel: Tunnel) -> Claim | None:
        """Claim an address for a tunnel, or return the tunnel that has it already."""
        claim = Claim(name, line)
        if isinstance(listen, TCPAddress | TLSListen | ProxyListen):
            return self._at_port(listen.host, listen.port, claim) if listen.port else None
        key = _key(listen, tunnel)
        return None if key is None or self._places.setdefault(key, claim) == claim else self._places[key]

    def _at_port(self, host: str, port: int, claim: Claim) -> Claim | None:
        others = self._ports.setdefault(port, [])
        for other, their_claim in others:
            if _overlap(host, other):
                return their_claim
        others.append((host, claim))
        return None


def exclude_each_other(one: object, tunnel: Tunnel, other: object, other_tunnel: Tunnel) -> bool:
    """Return whether two addresses, each with its tunnel, cannot be listened on at the same time."""
    table = ListenTable()
    table.claim(one, "one", 0, tunnel)
    return table.claim(other, "other", 0, other_tunnel) is not None


def _overlap(one: str, other: str) -> bool:
    """Return whether two hosts share their ports: they are equal, or one is all interfaces (``::`` also for IPv4)."""
    if one == other or "::" in (one, other):
        return True
    return _EVERY_IPV4 in (one, other) and ":" not in one + other


def _key(listen: object, tunnel: Tunnel) -> object:
    """Return a key that is equal for equal addresses; ``None`` for an address that is never shared."""
    if isinstance(listen, UnixAddress | SystemdListen):
        return listen
    if isinstance(listen, SSHListen):
        is_free = isinstance(listen.place, TCPAddress) and listen.place.port == 0
        return None if is_free else (listen.server.host, listen.server.user, listen.server.port, listen.place)
    if not isinstance(listen, I2PListen) or tunnel.transient:
        return None
    keys, session = listen.router.keys or tunnel.keys, listen.router.session or tunnel.session or tunnel.target
    return ("keys", keys) if keys else ("session", session)
