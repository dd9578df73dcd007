"""Where the tunnels of a file listen: no two of them at one address."""

from __future__ import annotations

from typing import NamedTuple

from ..addresses.hops import ProxyListen
from ..addresses.i2p import I2PListen
from ..addresses.ssh import SSHListen
from ..addresses.values import TCPAddress, TLSListen, UnixAddress
from .models import Tunnel

__all__ = ["Taken", "Who"]

_EVERY_IPV4 = "0.0.0.0"  # noqa: S104


class Who(NamedTuple):
    """A tunnel that listens somewhere, and the line that says so."""

    name: str
    line: int


class Taken:
    """The addresses at which something listens."""

    def __init__(self) -> None:
        self._places: dict[object, Who] = {}
        self._ports: dict[int, list[tuple[str, Who]]] = {}

    def by(self, listen: object, name: str, line: int, tunnel: Tunnel) -> Who | None:
        """Who listens at an address already; if nobody does, this tunnel does from now on."""
        who = Who(name, line)
        if isinstance(listen, TCPAddress | TLSListen | ProxyListen):
            return self._at_port(listen.host, listen.port, who) if listen.port else None
        key = _key(listen, tunnel)
        return None if key is None or self._places.setdefault(key, who) == who else self._places[key]

    def _at_port(self, host: str, port: int, who: Who) -> Who | None:
        others = self._ports.setdefault(port, [])
        for other, whose in others:
            if _overlap(host, other):
                return whose
        others.append((host, who))
        return None


def _overlap(one: str, other: str) -> bool:
    """Whether two hosts cannot have the same port: they are equal, or one is every interface, ``::`` for IPv4, too."""
    if one == other or "::" in (one, other):
        return True
    return _EVERY_IPV4 in (one, other) and ":" not in one + other


def _key(listen: object, tunnel: Tunnel) -> object:
    """What is the same for two that listen at one address; ``None`` if nothing can be."""
    if isinstance(listen, UnixAddress):
        return listen
    if isinstance(listen, SSHListen):
        is_free = isinstance(listen.place, TCPAddress) and listen.place.port == 0
        return None if is_free else (listen.server.host, listen.server.user, listen.server.port, listen.place)
    if not isinstance(listen, I2PListen) or tunnel.transient:
        return None
    keys, session = listen.router.keys or tunnel.keys, listen.router.session or tunnel.session or tunnel.target
    return ("keys", keys) if keys else ("session", session)
