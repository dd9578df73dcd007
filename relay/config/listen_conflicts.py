"""The addresses on which the tunnels of a file listen: each has one tunnel."""

from __future__ import annotations

from ..addresses.hops import AT_PORT, owner_of_keys
from ..addresses.ssh import SSHListen
from ..addresses.values import SystemdListen, TCPAddress, UnixAddress
from .models import Tunnel

_EVERY_IPV4 = "0.0.0.0"  # noqa: S104
_EVERY = (_EVERY_IPV4, "::")


class ListenTable:
    """The addresses that have a tunnel."""

    def __init__(self) -> None:
        self._places: dict[object, str] = {}
        self._ports: dict[int, dict[str, str]] = {}  # by port and host

    def claim(self, listen: object, name: str, tunnel: Tunnel) -> str | None:
        """Claim an address for a tunnel, or return the name of the tunnel that has it already."""
        if isinstance(listen, AT_PORT):
            return self._at_port(listen.host, listen.port, name) if listen.port else None
        key = _key(listen, tunnel)
        return None if key is None or self._places.setdefault(key, name) == name else self._places[key]

    def _at_port(self, host: str, port: int, name: str) -> str | None:
        claimed = self._ports.setdefault(port, {})
        # Thousands of tunnels may share a port, so only an address of all interfaces is compared with each.
        others = claimed if host in _EVERY else (host, *_EVERY)
        for other in others:
            if other in claimed and overlap(host, other):
                return claimed[other]
        claimed[host] = name
        return None


def exclude_each_other(one: object, tunnel: Tunnel, other: object, other_tunnel: Tunnel) -> bool:
    """Return whether two addresses, each with its tunnel, cannot be listened on at the same time."""
    table = ListenTable()
    table.claim(one, "one", tunnel)
    return table.claim(other, "other", other_tunnel) is not None


def group_of(listen: object, tunnel: Tunnel) -> object:
    """Return a key that is equal for addresses that may exclude each other; ``None`` for one that excludes none."""
    if isinstance(listen, AT_PORT):
        return listen.port or None
    return _key(listen, tunnel)


def overlap(one: str, other: str) -> bool:
    """Return whether two hosts share their ports: they are equal, or one is all interfaces (``::`` also for IPv4)."""
    if one == other or "::" in (one, other):
        return True
    return _EVERY_IPV4 in (one, other) and ":" not in one + other


def _key(listen: object, tunnel: Tunnel) -> object:
    """Return a key that is equal for equal addresses; ``None`` for an address that is never shared."""
    if isinstance(listen, UnixAddress):
        # Without its mode and group: two tunnels cannot have one path, whatever their rights are.
        return UnixAddress(listen.path)
    if isinstance(listen, SystemdListen):
        return listen
    if isinstance(listen, SSHListen):
        # The server chooses another port for each.
        is_free = isinstance(listen.place, TCPAddress) and listen.place.port == 0
        return None if is_free else (listen.server.host, listen.server.user, listen.server.port, listen.place)
    owner = owner_of_keys(listen)
    if owner is None or tunnel.transient:
        return None
    keys, session = owner.keys or tunnel.keys, owner.session or tunnel.session or tunnel.target
    return (type(owner), "keys", keys) if keys else (type(owner), "session", session)
