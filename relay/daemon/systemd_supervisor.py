"""Notifications to systemd about a group of tunnels, and the sockets that it keeps for them.

relay sends ``READY=1`` when each tunnel with ``required = true`` listens. If none is required, each must have opened,
failed, or wait for a server, so that one server that is down does not keep the service from starting.

systemd keeps the listening TCP sockets over a restart, so that clients wait and are not refused. A socket is found
again by the name of its tunnel and its address. A Unix socket is not kept, because its file is removed with its
listener; one of a socket unit is systemd's own.

Source: sd_pid_notify_with_fds(3), systemd.service(5) ("FileDescriptorStoreMax=").
"""

from __future__ import annotations

import functools
import logging
import math
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..addresses.hops import AT_PORT
from ..addresses.values import SystemdListen, has_mptcp, is_ip_address
from ..eventloop.sockets import MPTCP
from ..transports.activated import received
from .group import Group
from .member import MemberState, Snapshot
from .reporter import Supervisor
from .service_manager import Notifier, is_stored_name, stored_name
from .status import TURN

logger = logging.getLogger("relay.operations")

_MARGIN = 5.0  # seconds to close everything after the drain
_EXTENSION = 30.0  # seconds that one request for more time gives
_AGAIN = 10.0  # seconds from one to the next


class SystemdSupervisor(Supervisor):
    """The notifications. Belongs to the main thread, except the methods about a reload.

    :param group: the tunnels.
    :param manager: takes the notifications.
    :raises AddressError: if the variables of systemd about sockets are malformed.
    """

    def __init__(self, group: Group, manager: Notifier) -> None:
        self._group = group
        self._manager = manager
        self._watchdog = None if manager.watchdog is None else _Watchdog(group, manager, manager.watchdog / 2)
        self._extension: _Extension | None = None  # since the end has begun
        self._lock = threading.Lock()  # for what follows, and for the order of the notifications
        self._is_ready = False
        self._reloads = False
        self._status = ""
        self._store = StoredSockets(group, manager)

    is_managed = True

    def environment(self) -> Mapping[str, str]:
        """Return the variables with which another process finds the service manager."""
        return self._manager.environment()

    def on_handed_over(self, process: int) -> None:
        """Make another process the main one of the service; it has systemd keep its sockets itself."""
        # Before the main process changes: the next one has systemd keep the same sockets under the same names.
        self._store.release_all()
        self._manager.succeeded_by(process)

    def timeout(self) -> float | None:
        """Return the seconds until the watchdog, or the next request for more time, is due."""
        due = min((one.due for one in (self._watchdog, self._extension) if one is not None), default=math.inf)
        return None if due == math.inf else max(0.0, due - time.monotonic())

    def sockets_of(self, name: str) -> Sequence[socket.socket]:
        """Return the listening sockets that systemd has kept for a tunnel."""
        return self._store.sockets_of(name)

    def close(self) -> None:
        """Close the kept sockets that no tunnel has taken over."""
        self._store.close()

    def on_turn(self) -> None:
        """Report what has changed."""
        with self._lock:
            if self._group.is_ending:
                self._report_end()
            # During a reload systemd waits for READY; a status in between would be wrong a moment later.
            elif not self._reloads:
                self._report_state()
        self._store.on_turn()
        if self._watchdog is not None:
            self._watchdog.on_turn()

    def on_vacated(self, name: str) -> None:
        """Ask systemd to close its copy of a listener that a reload has closed, and wait for that."""
        self._store.release(name)

    def on_reload(self) -> None:
        """Report that a reload begins."""
        with self._lock:
            self._reloads = True
            if self._is_ready and self._extension is None:
                self._manager.reloading()

    def on_reloaded(self, *, was_successful: bool) -> None:
        """Report that the reload has ended, well or not."""
        with self._lock:
            self._reloads = False
            if self._is_ready and self._extension is None:
                self._status = self._counts(was_successful=was_successful)
                self._manager.ready(self._status)

    def _report_state(self) -> None:
        status = self._counts(was_successful=self._group.reload_figures.was_successful)
        if not self._is_ready and self._has_started():
            self._is_ready, self._status = True, status
            self._manager.ready(status)
        elif status != self._status:
            self._status = status
            self._manager.status(status)

    def _report_end(self) -> None:
        status = self._group.closing
        if self._extension is None:
            everyone = [*self._group.members, *self._group.leaving]
            drains = [one for one in everyone if one.state.accepts or one.state is MemberState.DRAINING]
            longest = max((member.plan.options.drain for member in drains), default=0.0)
            self._manager.stopping(status)
            self._extension = _Extension(self._manager, (self._group.closes_in or 0.0) + longest + _MARGIN)
        elif status != self._status:
            self._manager.status(status)
        self._status = status
        self._extension.on_turn()

    def _counts(self, *, was_successful: bool) -> str:
        members = self._group.members
        text = f"{sum(member.state.accepts for member in members)} of {len(members)} tunnels listen"
        return text if was_successful else f"{text}; the last reload failed"

    def _has_started(self) -> bool:
        members = self._group.members
        required = [member for member in members if member.plan.is_required]
        if required:
            return all(member.state.accepts for member in required)
        return all(member.state is not MemberState.OPENING for member in members)


class _Extension:
    """Requests for more time while open connections finish, none beyond the most that they may take.

    systemd kills a service that does not end within ``TimeoutStopSec`` and does not ask for more time.

    :param seconds: the most that the end may take.
    """

    def __init__(self, manager: Notifier, seconds: float) -> None:
        self.due = time.monotonic()
        self._manager = manager
        self._deadline = self.due + seconds

    def on_turn(self) -> None:
        """Ask when it is time."""
        now = time.monotonic()
        if now < self.due:
            return
        left = self._deadline - now
        self._manager.extend(min(left, _EXTENSION))
        # The last request ends with the time that was promised; systemd then kills what still hangs.
        self.due = now + _AGAIN if left > _EXTENSION else math.inf


class _Watchdog:
    """The feeding of the watchdog from the main thread, if the loop of each tunnel turns.

    :param period: seconds between two notifications.
    """

    def __init__(self, group: Group, manager: Notifier, period: float) -> None:
        self.due = time.monotonic()
        self._group = group
        self._manager = manager
        self._period = period
        self._round: _Round | None = None

    def on_turn(self) -> None:
        """Ask each loop when it is time; the last one that answers feeds the watchdog."""
        now = time.monotonic()
        if now < self.due:
            return
        if self._round is not None and (names := self._round.pending):
            logger.error("%s: its loop does not turn; the watchdog of systemd is not fed", min(names))
        self.due = now + self._period
        members = [one for one in self._group.members if one.has_opened and not one.state.is_over]
        asked = self._round = _Round(now, {member.name for member in members})
        for member in members:
            # A tunnel that has ended meanwhile has no loop any more, and must not count as stuck.
            if not member.relay.ping(functools.partial(self._on_answer, asked, member.name)):
                asked.pending.discard(member.name)
        self._feed(asked)

    def _on_answer(self, asked: _Round, name: str) -> None:
        """A loop has turned; on its thread, which must not wait for systemd."""
        self._group.later(self._on_turned, asked, name)

    def _on_turned(self, asked: _Round, name: str) -> None:
        asked.pending.discard(name)
        self._feed(asked)

    def _feed(self, asked: _Round) -> None:
        # An answer that is too late does not feed it: the loop was stuck, even if it turns again.
        if not asked.pending and not asked.is_fed and time.monotonic() - asked.started <= TURN:
            asked.is_fed = True
            self._manager.alive()


class _Round:
    """A question to all loops whether they turn.

    :param started: the time of the question, in monotonic seconds.
    :param pending: the names of the tunnels that have not answered.
    """

    def __init__(self, started: float, pending: set[str]) -> None:
        self.started = started
        self.pending = pending
        self.is_fed = False


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
    if not isinstance(where, AT_PORT):
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
