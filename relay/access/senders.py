"""The balancers whose headers of the PROXY protocol a tunnel accepts."""

from __future__ import annotations

import socket
from collections.abc import Collection
from typing import Any

from ..addresses.printable import shown
from ..streams.identity import plain_host

LOCAL_PROGRAMS = "unix"
"""The entry for the clients of a Unix socket."""

NO_HEADERS = "not supported with this listener; it goes with TCP, TLS and Unix listeners and with proxies"
"""Why some listeners cannot have senders."""

_MOST_KNOWN = 1024  # addresses that need no look-up; there are few balancers


class Senders:
    """The senders that may connect: networks, and perhaps the programs at the other end of a Unix socket.

    Equal if their entries are.

    :param entries: addresses, networks such as ``10.0.0.0/8``, and ``unix``.
    :raises TypeError: if it is no list of text.
    :raises ValueError: if it is empty, or an entry is none of these.
    """

    __slots__ = ("entries", "_has_local", "_known", "_networks", "_versions")

    def __init__(self, entries: Collection[str]) -> None:
        from .networks import NetworkSet, parse_network  # few tunnels have senders

        if isinstance(entries, str) or not isinstance(entries, Collection):
            raise TypeError(f"accept_proxy: expected a list of networks, got {type(entries).__name__}")
        if not entries:
            raise ValueError(
                "accept_proxy: the list is empty, so no client could connect; name a network, or leave it out"
            )
        networks = []
        for entry in entries:
            if not isinstance(entry, str):
                raise TypeError(f"accept_proxy: expected text, got {type(entry).__name__}")
            if entry == LOCAL_PROGRAMS:
                continue
            try:
                networks.append(parse_network(entry))
            except ValueError as error:
                raise ValueError(f"accept_proxy: {shown(entry)!r}: {error}") from None
        self.entries = tuple(entries)
        self._networks = NetworkSet(networks)
        self._versions = {network.version for network in networks}
        self._has_local = LOCAL_PROGRAMS in entries
        self._known: dict[str, bool] = {}

    def include(self, client: socket.SocketType, peer: Any) -> bool:
        """Return whether the client of a listener is a sender.

        :param client: the accepted socket, or that of the stream which a handshake has made of it.
        :param peer: its address, as ``accept()`` returned it.
        """
        if not isinstance(peer, tuple):
            return self._has_local and client.family == socket.AF_UNIX
        host = str(peer[0])
        found = self._known.get(host)
        if found is None:
            found = self._networks.find(plain_host(host)) is not None
            # Not beyond, and none is forgotten for another one: the rest costs a look-up each time.
            if len(self._known) < _MOST_KNOWN:
                self._known[host] = found
        return found

    def check(self, *, is_unix: bool, host: str = "") -> None:
        """Check that a sender can connect to a listener at all.

        :param is_unix: whether it listens at a Unix socket.
        :param host: where it listens otherwise; empty if that is not known.
        :raises ValueError: if none can.
        """
        if is_unix and not self._has_local:
            raise ValueError(
                "accept_proxy: no client could connect: its entries are for TCP, and the listener is a Unix socket; "
                "add unix, or leave it out"
            )
        if not is_unix and self._has_local and len(set(self.entries)) == 1:
            raise ValueError(
                "accept_proxy: no client could connect: unix is for the clients of a Unix socket, and the listener is "
                "none; name a network, or leave it out"
            )
        if not is_unix:
            self._check_version(host)

    def _check_version(self, host: str) -> None:
        from .networks import version_at

        version = version_at(host)
        if version is not None and version not in self._versions:
            other = 4 if version == 6 else 6
            raise ValueError(
                f"accept_proxy: no client could connect: its entries are for IPv{other}, and all clients of this "
                f"listener have addresses of IPv{version}; name a network of IPv{version}, or listen on [::]"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Senders) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    def __repr__(self) -> str:
        return f"Senders({list(self.entries)})"


def parse_senders(entries: Any) -> Senders | None:
    """Return the senders of the option ``accept_proxy``; ``None`` for clients without a header.

    The parameter and the errors are those of :class:`Senders`.
    """
    return None if entries is None else Senders(entries)
