"""The listening TCP sockets that systemd keeps over a restart, so that clients wait and are not refused.

A socket is found again by the name of its tunnel and its address. A Unix socket is not kept, because its file is
removed with its listener; one of a socket unit is systemd's own.

Source: sd_pid_notify_with_fds(3), systemd.service(5) ("FileDescriptorStoreMax=").
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from ..addresses.hops import ProxyListen
from ..addresses.values import SystemdListen, TCPAddress, TLSListen, has_mptcp, is_ip_address
from ..eventloop.sockets import MPTCP
from ..transports.activated import received
from .group import Group
from .member import MemberState, Snapshot
from .service_manager import Notifier, is_stored_name, stored_name

logger = logging.getLogger("relay.operations")


class StoredSockets:
    """The sockets of a group in the file descriptor store.

    A socket that no tunnel takes over would keep its address in use: systemd closes it before any tunnel opens.

    :param group: the tunnels, before they are opened.
    :param manager: keeps the sockets.
    :raises AddressError: if the variables of systemd about sockets are malformed.
    """

    def __init__(self, group: Group, manager: Notifier) -> None:
        self._group = group
        self._manager = manager
        passed = received()
        self._passed: dict[str, list[socket.socket]] = {}  # from before the restart
        self._lock = threading.Lock()  # for the next one
        self._kept: dict[str, Any] = {}  # the addresses of what systemd keeps, by its name
        self._has_warned = False
        stale = []
        for name in [name for name in passed if is_stored_name(name)]:
            listens = [one.plan.routes.where for one in group.members if stored_name(one.name) == name]
            if unclaimed := self._take(name, passed.pop(name), listens):
                stale.append(name)
                for one in unclaimed:
                    one.close()
        self._forget(stale)

    def sockets_of(self, name: str) -> Sequence[socket.socket]:
        """Return the sockets from before the restart that a tunnel may take over."""
        return self._passed.get(stored_name(name), ())

    def close(self) -> None:
        """Close the sockets from before the restart; the listeners have duplicates. Idempotent."""
        passed, self._passed = self._passed, {}
        for sockets in passed.values():
            for one in sockets:
                one.close()

    def release(self, name: str) -> None:
        """Ask systemd to close the socket of a tunnel, and wait for that; from any thread."""
        with self._lock:
            is_kept = self._kept.pop(stored_name(name), None) is not None
        self._forget([stored_name(name)] if is_kept else [])

    def release_all(self) -> None:
        """Ask systemd to close all its copies; from any thread."""
        with self._lock:
            names, self._kept = [*self._kept], {}
        for name in names:
            self._manager.forget(name)

    def on_turn(self) -> None:
        """Once all tunnels have begun, have systemd keep the sockets of those that listen, and no other."""
        members = self._group.members
        if self._group.is_ending or any(member.state is MemberState.OPENING for member in members):
            return
        # All tunnels have begun: what none has taken over by now will not be wanted.
        self.close()
        if not self._manager.stores:
            return
        with self._lock:  # :meth:`release` comes after the close of a listener: what is open here, it will find
            wanted = self._wanted(members)
            for name in [name for name, place in self._kept.items() if name not in wanted or wanted[name][1] != place]:
                self._manager.forget(name)
                del self._kept[name]
            for name, (listening, place) in wanted.items():
                if name not in self._kept and self._store(name, listening, place):
                    self._kept[name] = place

    def _store(self, name: str, listening: socket.socket, place: object) -> bool:
        """Ask systemd to keep a socket; return whether it was still open: another thread may close it at any time."""
        try:
            # Another thread may close the socket at any time; the duplicate stays open until it is sent.
            with listening.dup() as duplicate:
                is_open = bool(duplicate.getsockname() == place)  # its number may be that of another socket now
                if is_open:
                    self._manager.store(name, duplicate)
                return is_open
        except OSError:
            return False

    def _take(self, name: str, sockets: list[socket.socket], listens: Sequence[object]) -> list[socket.socket]:
        """Take the socket at the address of a tunnel; return the others."""
        claimed = [one for one in sockets if any(_fits(one, where) for where in listens)]
        if claimed:
            self._passed[name] = claimed
        if len(claimed) == len(sockets) == 1:
            self._kept[name] = claimed[0].getsockname()
        return [one for one in sockets if one not in claimed]

    def _forget(self, names: Iterable[str]) -> None:
        names = [*names]
        for name in names:
            self._manager.forget(name)
        if names:
            # systemd closes its copies when it handles the message, and answers the barrier after that. Until then the
            # address is in use, and a tunnel that opens at it would fail.
            self._manager.barrier()

    def _wanted(self, members: Iterable[Snapshot]) -> dict[str, tuple[socket.socket, Any]]:
        """Return the sockets to keep and their addresses, by their names."""
        found = [(stored_name(member.name), one) for member in members if (one := _listening(member)) is not None]
        most = self._manager.stores
        if len(found) > most and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%d listening sockets for %d places in systemd's store; raise FileDescriptorStoreMax", len(found), most
            )
        return dict(found[:most])


def _fits(one: socket.socket, where: object) -> bool:
    """Return whether a listener at an address would take over a socket."""
    if not isinstance(where, TCPAddress | TLSListen | ProxyListen):
        return False
    host, port = one.getsockname()[:2]
    if port != where.port or (one.proto == MPTCP) != has_mptcp(where):
        return False
    return not is_ip_address(where.host) or bool(host == where.host)


def _listening(member: Snapshot) -> tuple[socket.socket, Any] | None:
    """Return the listening TCP socket of a tunnel that relay has opened itself, and its address; ``None`` if none."""
    if not member.state.accepts or isinstance(member.plan.routes.where, SystemdListen):
        return None
    found = member.receive.listening
    if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        return found, found.getsockname()
    except OSError:  # it is closed; another thread may do that at any time
        return None
