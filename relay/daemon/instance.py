"""A running relay, as operators see and control it. Imported once a tunnel listens."""

from __future__ import annotations

import functools
import heapq
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from ..addresses.printable import shown
from ..carriers.listing import CarrierStatus, carriers
from ..engine import ledgers
from ..engine.records import ConnectionRecord
from ..engine.tunnel import Tunnel, part_of_connections
from ..eventloop import reserve
from ..eventloop.sockets import format_address
from ..transports.resume.figures import added, resume_figures
from .change.upgrade_channel import UpgradeChannel
from .disabled_targets import target_group
from .failures import ConflictError, NotFoundError
from .group import Group
from .member import Snapshot
from .plan import Plan
from .recent_log import LogLine
from .routed_targets import route_of_all, targets_of
from .status import (
    MOST_ROWS,
    BanStatus,
    CertificateLoads,
    ConnectionStatus,
    InstanceStatus,
    ProbeStatus,
    QuotaStatus,
    ReloadReport,
    TunnelStatus,
    TunnelVerdict,
    UpgradeReport,
    hop_state,
    worker_problem,
)

if TYPE_CHECKING:  # for tunnels in workers only
    from ..spawning.pool_tunnel import PoolTunnel


class _Texts(NamedTuple):
    """The texts about a tunnel that hardly ever change."""

    plan: Plan
    address: Any
    listen: str
    target: str
    via: tuple[str, ...]


def _texts(plan: Plan, address: Any) -> _Texts:
    """Return the texts about a tunnel.

    :param plan: by which it is opened.
    :param address: where it listens; ``None`` if it was never open.
    """
    listen = shown(str(plan.routes.where)) if address is None else format_address(address) + plan.on
    ends = plan.routes.out
    if plan.rules:  # no route is that of all clients
        return _Texts(plan, address, listen, shown(f"anywhere{plan.over}"), ())
    via = route_of_all(ends)
    if not ends or any(end is None for _, end in ends):
        target = "anywhere"
    else:
        target = targets_of(ends) + ("" if via else plan.over)
    return _Texts(plan, address, listen, target, tuple(shown(str(hop)) for hop in via))


class Instance:
    """A running relay. Every method may be called from any thread; those that act wait until it is done.

    Each action raises :class:`~relay.daemon.failures.ConflictError` once the program ends.

    :param group: the tunnels.
    :param config: the absolute path of their file; empty for a command line.
    :param control: returns the path of the control socket, which a reload may change; empty if there is none.
    :param probe_of: returns the probe of a tunnel.
    :param log: returns the last lines of the log.
    """

    def __init__(
        self,
        group: Group,
        config: str,
        control: Callable[[], str],
        probe_of: Callable[[Snapshot], ProbeStatus | None] = lambda _: None,
        log: Callable[[], Sequence[LogLine]] = tuple,
    ) -> None:
        self._group = group
        self._texts: dict[str, _Texts] = {}  # by the name of the tunnel; monitoring reads them often
        self._log = log
        self._probe_of = probe_of
        self._config = config
        self._control = control
        self._version = version("relay-toolkit")

    # -- what is shown ------------------------------------------------------------------------------------------------

    def status(self, *, figures: bool = False) -> InstanceStatus:
        """Return the facts about the process.

        :param figures: whether it has those of resumable streams, for which relay asks the workers.
        """
        reloads = self._group.reload_figures
        return InstanceStatus(
            version=self._version,
            pid=os.getpid(),
            started=self._group.started,
            config=self._config,
            draining=self._group.is_ending,
            log_level=logging.getLevelName(logging.getLogger("relay").level).lower(),
            control=self._control(),
            reloads=reloads if reloads.last_success else None,
            workers=tuple(self._group.processes.workers()),
            resumes=added([resume_figures(), *self._group.processes.resumes()]) if figures else None,
        )

    def tunnels(self, *, figures: bool = True) -> list[TunnelStatus]:
        """Return the tunnels, in the order of the file.

        :param figures: whether they have their figures, for which relay looks at each connection and asks the workers.
        """
        # The main thread replaces the state of a tunnel as a whole. A request reads it once, so that all of it fits.
        members = self._group.members
        if len(self._texts) > len(members):
            for name in {*self._texts} - {member.name for member in members}:  # a reload has removed it
                self._texts.pop(name, None)
        return [self._tunnel(member, figures) for member in members]

    def _tunnel(self, member: Snapshot, figures: bool) -> TunnelStatus:
        plan = member.plan
        hops, problem, stuck, metrics, end, loads = "up", member.problem, "", None, None, None
        if member.has_opened:
            metrics = member.metrics() if figures else None
            stuck = worker_problem(member.relay)
            end = member.receive.certificate_end
            loads = member.receive.certificate_loads
            if member.state.accepts:
                hops, problem = hop_state(member.receive, member.make_send)
            problem = stuck or problem
        targets = target_group(member.make_send) if member.has_opened else None
        address = member.relay.address if member.has_opened else None
        # Two requests may make the same texts at once; the last ones are kept, and either are right.
        texts = self._texts.get(plan.name)
        if texts is None or texts.plan is not plan or texts.address != address:
            texts = self._texts[plan.name] = _texts(plan, address)
        return TunnelStatus(
            name=plan.name,
            state=member.state.value,
            listen=texts.listen,
            target=texts.target,
            via=texts.via,
            required=plan.is_required,
            since=member.since,
            hops=hops,
            problem=problem,
            stuck=bool(stuck),
            figures=metrics.stats() if metrics is not None else None,
            metrics=metrics,
            warm=metrics.warm if metrics is not None else None,
            probe=self._probe_of(member),
            certificate_end=end,
            certificate_loads=loads and CertificateLoads(*loads),
            targets=tuple(targets.states()) if targets is not None else (),
            labels=plan.options.labels,
        )

    def connections(self, tunnel: str | None = None, first: int = 0, most: int | None = None) -> list[ConnectionStatus]:
        """Return the open connections of a tunnel, or of all, each tunnel's oldest first.

        :param first: connections to pass over.
        :param most: connections at most; ``None`` for all.
        :raises NotFoundError: if there is no such tunnel, as the next three do.
        """
        found: list[ConnectionStatus] = []
        for member in self._members(tunnel):
            left = None if most is None else most - len(found)
            if not member.has_opened or left == 0:
                continue
            records, count = _open_records(member.relay, first, left)
            first = max(0, first - count)
            found += [ConnectionStatus.of(member.name, record) for record in records]
        return found

    def recent(self, tunnel: str | None = None) -> list[ConnectionStatus]:
        """Return the last connections that ended, 100 for each tunnel, oldest first."""
        members = self._members(tunnel)
        return [
            ConnectionStatus.of(member.name, record)
            for member in members
            if member.has_opened and not member.is_continued
            for record in member.recent()
        ]

    def bans(self, tunnel: str | None = None, most: int = MOST_ROWS) -> list[BanStatus]:
        """Return the bans of a tunnel, or of all; at most so many, those that last longest."""
        found = (
            BanStatus(tunnel=name, limit=entry.limit, key=entry.key, until=entry.banned_until)
            for name, relaying in self._relaying(tunnel)
            for entry in ledgers.bans_of(relaying, most)
        )
        return heapq.nlargest(most, found, key=lambda one: one.until)

    def quotas(self, tunnel: str | None = None) -> list[QuotaStatus]:
        """Return what was used of the quotas of a tunnel, or of all, the largest part first."""
        found = (
            QuotaStatus(tunnel=name, limit=entry.limit, key=entry.key, used=entry.used, quota=quota, since=entry.period)
            for name, relaying in self._relaying(tunnel)
            for entry, quota in ledgers.entries_of(relaying)
            if entry.used and quota
        )
        return heapq.nlargest(MOST_ROWS, found, key=lambda one: one.used / one.quota)

    def carriers(self) -> list[CarrierStatus]:
        """Return the carriers of the process and of its workers, in the order of their names."""
        return sorted([*carriers(), *self._group.processes.carriers()], key=lambda one: (one.name, one.worker or 0))

    def log(self) -> Sequence[LogLine]:
        """Return the last lines of the log, oldest first; none if there is no status server."""
        return self._log()

    def stuck_loops(self, timeout: float) -> list[str]:
        """Return the names of the open tunnels whose loop does not turn.

        :param timeout: seconds to wait for all of them.
        """
        # All are asked before the first is waited for, so that several stuck loops take no longer than one.
        asked: list[tuple[str, threading.Event]] = []
        for member in self._group.members:
            if member.has_opened and not member.state.is_over:
                turned = threading.Event()
                if member.relay.ping(turned.set):
                    asked.append((member.name, turned))
        deadline = time.monotonic() + timeout
        return [name for name, turned in asked if not turned.wait(max(0.0, deadline - time.monotonic()))]

    def time_loops(self, names: Collection[str], turned: Callable[[str, float], object]) -> set[str]:
        """Measure how long the loops of open tunnels take to turn. Never waits.

        :param names: of the tunnels.
        :param turned: called in the thread of each loop, with the name of the tunnel and the seconds that it took. It
            must not block.
        :returns: the names of the tunnels for which it will be called, unless they end before.
        """
        asked = set()
        for member in self._group.members:
            if member.name in names and member.has_opened and not member.state.is_over:
                timed = functools.partial(_time_turn, turned, member.name, time.monotonic())
                if member.relay.ping(timed):
                    asked.add(member.name)
        return asked

    # -- what is done -------------------------------------------------------------------------------------------------

    def pause(self, name: str) -> None:
        """Accept no client at a tunnel until :meth:`resume`.

        :raises NotFoundError: if there is no such tunnel, as the next two do.
        :raises ConflictError: if it is not open, as the next two do.
        """
        self._group.pause(name)

    def resume(self, name: str) -> None:
        """Accept clients again."""
        self._group.resume(name)

    def drain(self, name: str) -> None:
        """Close the listener of a tunnel; its connections may finish. Does not wait for them."""
        self._group.drain(name)

    def enable(self, name: str, target: str) -> None:
        """Give one of several targets of a tunnel connections again, after a probe has passed.

        :param target: its name in the status of the tunnel.
        :raises NotFoundError: if there is no such tunnel or target, as the next one does.
        :raises ConflictError: if the tunnel is not open or has one target, as the next one does.
        """
        self._set_target(name, target, enabled=True)

    def disable(self, name: str, target: str) -> None:
        """Give one of several targets of a tunnel no new connections; open ones stay."""
        self._set_target(name, target, enabled=False)

    def _set_target(self, name: str, target: str, *, enabled: bool) -> None:
        if self._group.is_ending:
            raise ConflictError("relay is ending")
        # The next process knows which targets are disabled; it would not learn of a change that comes now.
        self._group.check_operable()
        ((member),) = self._members(name)
        if not member.state.accepts:
            raise ConflictError(f"{name}: it is not open")
        if (targets := target_group(member.make_send)) is None:
            raise ConflictError(f"{name}: it has one target; relay ctl pause {name} makes its clients wait")
        try:
            targets.set_enabled(target, enabled)
        except KeyError:
            known = ", ".join(one.target for one in targets.states())
            raise NotFoundError(f"{name}: there is no target {shown(target)}; known are {shown(known)}") from None

    def kill(self, connection: str) -> None:
        """Reset a connection.

        :param connection: its id.
        :raises NotFoundError: if no open connection has this id.
        """
        # An id does not say whose it is. A tunnel that a reload has removed may still have the connection.
        for member in self._members(None):
            if member.has_opened and member.relay.kill(connection):
                return
        raise NotFoundError(
            f"{shown(connection)}: there is no open connection with this id; relay ctl connections lists them"
        )

    def clear(self, kind: str, key: str, tunnel: str | None = None) -> int:
        """Forget bans or quotas. A limit that has both forgets both.

        :param kind: ``bans``, also for a client that a rate rejects, or ``quotas``.
        :param key: the clients that count together, or the address of one of them.
        :param tunnel: its name; ``None`` for all.
        :returns: how many were forgotten.
        :raises NotFoundError: if there is none.
        """
        if cleared := sum(ledgers.clear(one, kind, key) for _, one in self._relaying(tunnel)):
            return cleared
        raise NotFoundError(f"{shown(key)}: there are no {kind} with this key; relay ctl {kind} lists them")

    def reload(self, *, dry_run: bool = False) -> ReloadReport:
        """Read the file again, and change the tunnels whose configuration has changed.

        :param dry_run: only return the verdicts.
        :raises ReloadError: if the file is invalid, or a tunnel cannot be opened; nothing has changed then.
        """
        result = self._group.reload(dry_run)
        changes = (TunnelVerdict(each.name, each.verdict.word, ", ".join(each.keys)) for each in result.changes)
        return ReloadReport(tuple(changes), dry_run, result.keys)

    def upgrade(self) -> UpgradeReport:
        """Start the same command line again; the new process takes over the listening sockets. Waits for it.

        :raises UpgradeError: if it does not become ready; nothing has changed then.
        :raises ConflictError: if the program has no file.
        """
        if self._group.upgrades is None:
            raise ConflictError("this command cannot be upgraded, relay up can; start it again")
        with reserve.lent():
            return self._group.upgrades.start()

    def hand_over(self, connection: socket.socket, first: bytes) -> None:
        """Hand the listening sockets over to a process that has connected for that. Does not wait.

        :param connection: to that process; see :mod:`relay.daemon.change.upgrade_channel`. It is closed in the end.
        :param first: what was read from it.
        """
        if self._group.upgrades is not None:
            self._group.upgrades.serve(connection, first)
        else:
            UpgradeChannel(connection).fail("this command cannot be upgraded, relay up can; start it again")

    def set_log_level(self, level: str) -> None:
        """Log from this level on.

        :param level: one of :data:`~relay.daemon.status.LOG_LEVELS`.
        """
        self._group.reporter.log_from(logging.getLevelNamesMapping()[level.upper()])

    def reopen_logs(self) -> None:
        """Open the log files again, after they were renamed.

        :raises OSError: if one cannot be opened; the old one is kept.
        """
        self._group.reopen_logs()

    def stop(self) -> None:
        """End as after SIGTERM: open connections may finish; each further call begins the next step. Does not wait."""
        self._group.stop()

    def _members(self, name: str | None) -> Iterable[Snapshot]:
        if name is None:
            return (*self._group.members, *self._group.leaving)
        if (found := self._group.member(name)) is None:
            raise NotFoundError(f"{shown(name)}: there is no such tunnel; relay ctl list prints all of them")
        return (found,)

    def _relaying(self, name: str | None) -> Iterator[tuple[str, Tunnel]]:
        """Yield the tunnels that this process relays, with their names: those with bans and quotas are among them."""
        for member in self._members(name):
            if member.has_opened and isinstance(tunnel := member.relay, Tunnel):
                yield member.name, tunnel


def _open_records(tunnel: Tunnel | PoolTunnel, first: int, most: int | None) -> tuple[Sequence[ConnectionRecord], int]:
    """Return a part of the records of open connections, and the number of all of them."""
    if isinstance(tunnel, Tunnel):
        return part_of_connections(tunnel, first, most)
    records = tunnel.connections()
    return records[first:][:most], len(records)


def _time_turn(turned: Callable[[str, float], object], name: str, asked: float) -> None:
    turned(name, time.monotonic() - asked)
