"""A running relay, as operators see it: the contract between the command and what shows or controls it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..carriers.listing import CarrierStatus
from ..engine.records import Metrics, Stats, WarmFigures
from ..streams.identity import client_text
from ..targets.group import TargetState
from .ledgers import Ledgers
from .recent_log import LogLine

__all__ = [
    "CertificateLoads",
    "LOG_LEVELS",
    "TURN",
    "CarrierStatus",
    "ChangedKey",
    "ConflictError",
    "ConnectionStatus",
    "Instance",
    "InstanceStatus",
    "LogLine",
    "NotFoundError",
    "ProbeStatus",
    "RejectedError",
    "ReloadReport",
    "ReloadStatus",
    "TunnelStatus",
    "UpgradeReport",
    "Verdict",
    "WorkerStatus",
]

LOG_LEVELS = ("debug", "info", "warning", "error")
TURN = 5.0  # seconds for a loop to turn; one that takes longer is stuck


class NotFoundError(LookupError):
    """A tunnel or a connection that does not exist."""


class ConflictError(RuntimeError):
    """An action that the state does not allow, such as the pause of a tunnel that is not open."""


class RejectedError(ValueError):
    """A reload that was refused: the file has a problem, or a tunnel cannot be opened. Nothing has changed.

    :param lines: the problems, one line each.
    :param status: the HTTP status that stands for them: 422 if the user has to change the file, else 500.
    """

    def __init__(self, lines: Sequence[str], status: int = 422) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)
        self.status = status


@dataclass(frozen=True, slots=True)
class UpgradeReport:
    """A process that has taken the place of this one.

    :param pid: its ID.
    :param version: of its relay.
    """

    pid: int
    version: str


@dataclass(frozen=True, slots=True)
class ProbeStatus:
    """The probe of a tunnel: a stream through every hop to its target, opened now and then.

    :param kind: ``connect``, ``banner`` or ``http``.
    :param interval: seconds from one to the next.
    :param finished: when the last one ended, in seconds since 1970; ``None`` if none has.
    :param seconds: how long that took.
    :param problem: why it failed; empty if it did not.
    """

    kind: str
    interval: float
    finished: float | None = None
    seconds: float = 0.0
    problem: str = ""


class CertificateLoads(NamedTuple):
    """The loads of a listener's certificates after their files have changed, and those that have failed."""

    succeeded: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelStatus:
    """One tunnel at one moment: plain data.

    :param name: its name.
    :param state: ``opening``, ``waiting`` (for the server at which it is to listen), ``listening``, ``paused``,
        ``draining``, ``closed`` or ``failed``.
    :param listen: where it listens; the address of the configuration while it does not.
    :param target: where it leads to; ``anywhere`` for a proxy, followed by the number of its rules if it has any.
    :param via: the hops on the way to the target, the nearest first.
    :param required: whether the program ends if it cannot start, and is not ready without it.
    :param since: when the state last changed, in seconds since 1970.
    :param hops: the state of the carriers under it: ``up`` if all are.
    :param problem: why it does not listen, the workers that do not answer, or the last error of a carrier; empty if
        there is none.
    :param stuck: whether a worker of it does not answer. relay replaces the worker.
    :param figures: since it was opened; ``None`` before that.
    :param metrics: all counters since it was opened; ``None`` before that.
    :param warm: its warm streams; ``None`` if it has never had any.
    :param probe: its probe; ``None`` if it has none.
    :param certificate_end: until when the certificate of its TLS listener is valid, in seconds since 1970; ``None`` if
        it has none.
    :param certificate_loads: those of its TLS listener; ``None`` if it has none.
    :param targets: the state of each target, if it has several.
    """

    name: str
    state: str
    listen: str
    target: str
    via: tuple[str, ...] = ()
    required: bool = False
    since: float = 0.0
    hops: str = "up"
    problem: str = ""
    stuck: bool = False
    figures: Stats | None = None
    metrics: Metrics | None = field(default=None, metadata={"json": False})
    warm: WarmFigures | None = None
    probe: ProbeStatus | None = None
    certificate_end: float | None = None
    certificate_loads: CertificateLoads | None = None
    targets: tuple[TargetState, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStatus:
    """Plain data of a connection, as :class:`relay.engine.records.ConnectionRecord` has it.

    :param id: unique in this process and in others; for ``kill``.
    :param tunnel: the tunnel's name.
    :param peer: the client's address as text; empty if it has none.
    :param target: the name of the outgoing stream; ``None`` while it is unknown.
    :param age: seconds since its acceptance, or until it ended.
    :param received: bytes from the client.
    :param sent: bytes to the client.
    :param engine: ``splice`` or ``copy``.
    :param state: ``connecting``, ``open``, ``half-closed`` or ``closed``.
    :param reason: the word for why it ended; ``None`` while it is open.
    :param started: when it was accepted, in seconds since 1970.
    :param by: the party that ended it: ``client``, ``target``, ``relay`` or ``admin``; ``None`` while it is open.
    :param warm: whether its stream was open before its client came.
    :param identity: who the client is: ``kind``, ``name``, and ``verified`` if it is not; ``None`` if it is unknown.
    :param rule: the rule that denied the client.
    """

    id: str
    tunnel: str
    peer: str
    target: str | None
    age: float
    received: int
    sent: int
    engine: str
    state: str
    reason: str | None = None
    started: float = 0.0
    by: str | None = None
    warm: bool = False
    identity: Mapping[str, Any] | None = None
    rule: str | None = None

    @property
    def client(self) -> str:
        """The client as text: its address, and its identity where that says more; empty if neither is known."""
        identity = self.identity or {"kind": "", "name": ""}
        return client_text(self.peer, identity["kind"], identity["name"]) if self.peer or self.identity else ""


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """The reloads of a process.

    :param succeeded: those that were done.
    :param failed: those that have changed nothing.
    :param was_successful: whether the last one was done; true before the first one.
    :param last_success: when the last one was done, or the start, in seconds since 1970.
    """

    succeeded: int
    failed: int
    was_successful: bool
    last_success: float


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker process.

    :param number: its number, from 1.
    :param pid: its process ID; ``None`` while there is no process.
    :param state: ``starting``, ``running``, ``stuck`` (it does not answer), ``waiting`` (for the time to start again)
        or ``ended``.
    :param restarts: the processes that have died in its place.
    """

    number: int
    pid: int | None
    state: str
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceStatus:
    """The process.

    :param version: of relay.
    :param pid: its process ID.
    :param started: when it started, in seconds since 1970.
    :param config: the absolute path of its file; empty for a command line.
    :param draining: whether it is about to end.
    :param log_level: one of :data:`LOG_LEVELS`; with ``warning``, the log has also what the command itself does.
    :param control: the path of the control socket; empty if there is none.
    :param reloads: its reloads; ``None`` for a command line.
    :param workers: its worker processes.
    """

    version: str
    pid: int
    started: float
    config: str
    draining: bool
    log_level: str
    control: str = ""
    reloads: ReloadStatus | None = None
    workers: tuple[WorkerStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The effect of a reload on one tunnel.

    :param name: of the tunnel.
    :param verdict: ``same``, ``tuned``, ``rerouted``, ``moved``, ``gone`` or ``new``.
    :param detail: what has changed; empty for ``same``.
    """

    name: str
    verdict: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ChangedKey:
    """The effect of a reload on a key at the top of the file that has changed.

    :param key: the key.
    :param effect: ``tuned``, ``overridden`` (by the command line), ``upgrade`` (an upgrade or a restart changes it) or
        ``restart`` (only a restart does).
    :param remedy: what the user has to do so that it is in force; empty if the reload does it.
    """

    key: str
    effect: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """The effect of a reload.

    :param verdicts: one for each tunnel, before or after.
    :param dry_run: whether nothing was changed.
    :param keys: the keys at the top of the file that have changed.
    """

    verdicts: tuple[Verdict, ...]
    dry_run: bool = False
    keys: tuple[ChangedKey, ...] = ()


class Instance(Ledgers, Protocol):
    """A running relay. Every method may be called from any thread; those that act wait until it is done.

    Each action raises :class:`ConflictError` once the program ends.
    """

    def status(self) -> InstanceStatus:
        """Return the facts about the process."""

    def tunnels(self, *, figures: bool = True) -> Sequence[TunnelStatus]:
        """Return the tunnels, in the order of the file.

        :param figures: whether they have their figures, for which relay looks at each connection and asks the workers.
        """

    def connections(
        self, tunnel: str | None = None, first: int = 0, most: int | None = None
    ) -> Sequence[ConnectionStatus]:
        """Return the open connections of a tunnel, or of all, each tunnel's oldest first.

        :param first: connections to pass over.
        :param most: connections at most; ``None`` for all.
        :raises NotFoundError: if there is no such tunnel.
        """

    def recent(self, tunnel: str | None = None) -> Sequence[ConnectionStatus]:
        """Return the last connections that ended, 100 for each tunnel, oldest first.

        :raises NotFoundError: if there is no such tunnel.
        """

    def carriers(self) -> Sequence[CarrierStatus]:
        """Return the carriers of the process and of its workers, in the order of their names."""

    def log(self) -> Sequence[LogLine]:
        """Return the last lines of the log, oldest first; none if there is no status server."""

    def stuck_loops(self, timeout: float) -> Sequence[str]:
        """Ask the loop of each open tunnel to turn once.

        :param timeout: seconds to wait for all of them.
        :returns: the names of the tunnels whose loop did not turn.
        """

    def time_loops(self, names: Collection[str], turned: Callable[[str, float], object]) -> Collection[str]:
        """Measure how long the loops of open tunnels take to turn. Never waits.

        :param names: of the tunnels.
        :param turned: called in the thread of each loop, with the name of the tunnel and the seconds that it took. It
            must not block.
        :returns: the names of the tunnels for which it will be called, unless they end before.
        """

    def pause(self, name: str) -> None:
        """Accept no client at a tunnel until :meth:`resume`.

        :raises NotFoundError: if there is no such tunnel, as the next two do.
        :raises ConflictError: if it is not open, as the next two do.
        """

    def resume(self, name: str) -> None:
        """Accept clients again."""

    def drain(self, name: str) -> None:
        """Close the listener of a tunnel; its connections may finish. Does not wait for them."""

    def enable(self, name: str, target: str) -> None:
        """Give one of several targets of a tunnel connections again, after a probe has passed.

        :param target: its name in the status of the tunnel.
        :raises NotFoundError: if there is no such tunnel or target, as the next one does.
        :raises ConflictError: if the tunnel is not open or has one target, as the next one does.
        """

    def disable(self, name: str, target: str) -> None:
        """Give one of several targets of a tunnel no new connections; open ones stay."""

    def kill(self, connection: str) -> None:
        """Reset a connection.

        :param connection: its id.
        :raises NotFoundError: if no open connection has this id.
        """

    def reload(self, *, dry_run: bool = False) -> ReloadReport:
        """Read the file again, and change the tunnels whose configuration has changed.

        :param dry_run: only return the verdicts.
        :raises RejectedError: if the file is invalid, or a tunnel cannot be opened; nothing has changed then.
        :raises ConflictError: if the program has no file.
        """

    def upgrade(self) -> UpgradeReport:
        """Start the same command line again; the new process takes over the listening sockets. Waits for it.

        :raises RejectedError: if it does not become ready; nothing has changed then.
        :raises ConflictError: if the program has no file, ends, or is handing over already.
        """

    def hand_over(self, connection: socket.socket, first: bytes) -> None:
        """Hand the listening sockets over to a process that has connected for that. Does not wait.

        :param connection: to that process; see :mod:`relay.daemon.change.upgrade_channel`. It is closed in the end.
        :param first: what was read from it.
        """

    def set_log_level(self, level: str) -> None:
        """Log from this level on.

        :param level: one of :data:`LOG_LEVELS`.
        """

    def reopen_logs(self) -> None:
        """Open the log files again, after they were renamed.

        :raises OSError: if one cannot be opened; the old one is kept.
        """

    def stop(self) -> None:
        """End as after SIGTERM: open connections may finish; each further call begins the next step. Does not wait."""
