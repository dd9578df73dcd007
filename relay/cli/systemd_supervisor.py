"""A group of tunnels as a service: what systemd is told, and when.

systemd hears ``READY=1`` once each tunnel with ``required = true`` listens. If none is required, each must have opened,
failed, or wait for a server, so that one server that is down does not keep the service from starting.
"""

from __future__ import annotations

import functools
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..addresses.values import SystemdListen
from ..operations.health import TURN
from ..operations.service_manager import Notifier, is_stored_name, notifier, stored_name
from ..transports.activated import received
from .group import TunnelGroup
from .member import MemberState, Snapshot
from .output import closing
from .supervisor import Supervisor

__all__ = ["SystemdSupervisor", "supervised"]

logger = logging.getLogger("relay.operations")

_MARGIN = 5.0  # seconds to close everything after the drain


@contextmanager
def supervised(group: TunnelGroup) -> Iterator[None]:
    """Tell the service manager about a group while it runs, if there is one."""
    manager = notifier()
    if manager is None:
        yield
        return
    with manager:
        supervisor = group.supervisor = SystemdSupervisor(group, manager)
        try:
            yield
        finally:
            supervisor.close()


class SystemdSupervisor(Supervisor):
    """Notifies systemd. Belongs to the main thread, except the two methods about a reload.

    :param group: the tunnels.
    :param manager: takes the notifications.
    """

    def __init__(self, group: TunnelGroup, manager: Notifier) -> None:
        self._group = group
        self._manager = manager
        self._watchdog = None if manager.watchdog is None else _Watchdog(group, manager, manager.watchdog / 2)
        self._lock = threading.Lock()  # for what follows, and for the order of the notifications
        self._is_ready = False
        self._is_ending = False
        self._reloads = False
        self._status = ""
        self._store = _Store(group, manager)

    def timeout(self) -> float | None:
        """Return the seconds until the watchdog is due."""
        return None if self._watchdog is None else self._watchdog.timeout()

    def sockets_of(self, name: str) -> Sequence[socket.socket]:
        """Return the listening sockets that systemd has kept for a tunnel."""
        return self._store.sockets_of(name)

    def close(self) -> None:
        """Close the kept sockets that nobody has taken over."""
        self._store.close()

    def on_turn(self) -> None:
        """Tell what has changed."""
        with self._lock:
            if self._group.is_ending:
                self._tell_end()
            elif not self._reloads:
                self._tell_state()
        self._store.on_turn()
        if self._watchdog is not None:
            self._watchdog.on_turn()

    def on_reload(self) -> None:
        """Tell that a reload begins."""
        with self._lock:
            self._reloads = True
            if self._is_ready and not self._is_ending:
                self._manager.reloading()

    def on_reloaded(self, *, was_successful: bool) -> None:
        """Tell that the reload has ended, well or not."""
        with self._lock:
            self._reloads = False
            if self._is_ready and not self._is_ending:
                self._status = self._counts() + ("" if was_successful else "; the last reload failed")
                self._manager.ready(self._status)

    def _tell_state(self) -> None:
        status = self._counts() + ("" if self._group.reload_figures.was_successful else "; the last reload failed")
        if not self._is_ready and self._has_started():
            self._is_ready, self._status = True, status
            self._manager.ready(status)
        elif status != self._status:
            self._status = status
            self._manager.status(status)

    def _tell_end(self) -> None:
        if self._is_ending:
            return
        self._is_ending = True
        drains = [member for member in self._members if member.state is MemberState.DRAINING]
        live = sum(member.opened.tunnel.stats().active for member in drains if member.opened is not None)
        longest = max((member.plan.options.drain for member in drains), default=0.0)
        self._manager.stopping(closing(live, longest), longest + _MARGIN)

    @property
    def _members(self) -> list[Snapshot]:
        return [*self._group.members, *self._group.leaving]

    def _counts(self) -> str:
        members = self._group.members
        return f"{sum(member.state.accepts for member in members)} of {len(members)} tunnels listen"

    def _has_started(self) -> bool:
        members = self._group.members
        required = [member for member in members if member.is_required]
        if required:
            return all(member.state.accepts for member in required)
        return all(member.state is not MemberState.OPENING for member in members)


class _Store:
    """The listening TCP sockets that systemd keeps over a restart, so that clients wait and are not refused.

    A socket is found again by the name of its tunnel and its address. A Unix socket is not kept, because its file is
    removed with its listener; one of a socket unit is systemd's own.
    """

    def __init__(self, group: TunnelGroup, manager: Notifier) -> None:
        self._group = group
        self._manager = manager
        passed = received()
        self._passed = {name: passed.pop(name) for name in [*passed] if is_stored_name(name)}
        self._kept = {name: {one.getsockname() for one in sockets} for name, sockets in self._passed.items()}

    def sockets_of(self, name: str) -> Sequence[socket.socket]:
        return self._passed.get(stored_name(name), ())

    def close(self) -> None:
        """Close what was passed; the listeners have duplicates. Idempotent."""
        passed, self._passed = self._passed, {}
        for sockets in passed.values():
            for one in sockets:
                one.close()

    def on_turn(self) -> None:
        """Once all tunnels have begun, keep what listens and nothing else."""
        members = self._group.members
        if self._group.is_ending or any(member.state is MemberState.OPENING for member in members):
            return
        self.close()
        if not self._manager.stores:
            return
        wanted: dict[str, dict[Any, socket.socket]] = {}
        for member in members:
            if (listening := _listening(member)) is not None:
                wanted.setdefault(stored_name(member.name), {})[listening.getsockname()] = listening
        for name in [name for name, places in self._kept.items() if wanted.get(name, {}).keys() != places]:
            self._manager.forget(name)
            del self._kept[name]
        for name, sockets in wanted.items():
            if name not in self._kept:
                for listening in sockets.values():
                    self._manager.store(name, listening)
                self._kept[name] = {*sockets}


def _listening(member: Snapshot) -> socket.socket | None:
    """Return the listening TCP socket of a tunnel that relay has opened itself; ``None`` if there is none."""
    if member.opened is None or not member.state.accepts or isinstance(member.plan.routes.where, SystemdListen):
        return None
    found = getattr(member.opened.receive, "listening", member.opened.receive)
    is_tcp = isinstance(found, socket.socket) and found.family in (socket.AF_INET, socket.AF_INET6)
    return found if is_tcp and found.fileno() >= 0 else None


class _Watchdog:
    """Feeds the watchdog from the main thread, if the loop of each tunnel turns.

    :param period: seconds between two signs of life.
    """

    def __init__(self, group: TunnelGroup, manager: Notifier, period: float) -> None:
        self._group = group
        self._manager = manager
        self._period = period
        self._due = time.monotonic()
        self._round: _Round | None = None

    def timeout(self) -> float:
        return max(0.0, self._due - time.monotonic())

    def on_turn(self) -> None:
        """Ask each loop when it is time; the last one that answers feeds the watchdog."""
        now = time.monotonic()
        if now < self._due:
            return
        if self._round is not None and (names := self._round.pending):
            logger.error("%s: its loop does not turn; the watchdog of systemd is not fed", min(names))
        self._due = now + self._period
        members = [one for one in self._group.members if one.opened is not None and not one.state.is_over]
        asked = self._round = _Round(now, {member.name for member in members})
        for member in members:
            assert member.opened is not None
            if not member.opened.tunnel.ping(functools.partial(self._on_answer, asked, member.name)):
                asked.pending.discard(member.name)
        self._feed(asked)

    def _on_answer(self, asked: _Round, name: str) -> None:
        """A loop has turned; on its thread."""
        self._group.later(self._on_turned, asked, name)

    def _on_turned(self, asked: _Round, name: str) -> None:
        asked.pending.discard(name)
        self._feed(asked)

    def _feed(self, asked: _Round) -> None:
        if not asked.pending and not asked.is_fed and time.monotonic() - asked.started <= TURN:
            asked.is_fed = True
            self._manager.alive()


class _Round:
    """A question to all loops whether they turn.

    :param started: when they were asked, in monotonic seconds.
    :param pending: the names of the tunnels that have not answered.
    """

    def __init__(self, started: float, pending: set[str]) -> None:
        self.started = started
        self.pending = pending
        self.is_fed = False
