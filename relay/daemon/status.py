"""The state of a running relay at one moment, as plain data: what operators, tables and metrics read.

The JSON of operators and its description (OpenAPI) follow from the fields, in their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..engine.records import Metrics, Stats, WarmFigures
from ..eventloop.sockets import format_address
from ..streams.dialer import Dialer
from ..streams.identity import client_text
from ..streams.listener import TunnelListener
from .disabled_targets import target_group

if TYPE_CHECKING:  # a tunnel in this process, with one target and no file, needs none of them
    from ..engine.records import ConnectionRecord
    from ..engine.tunnel import Tunnel
    from ..spawning.pool_tunnel import PoolTunnel
    from ..spawning.worker_slot import WorkerStatus
    from ..targets.group import TargetState
    from ..transports.resume.figures import ResumeFigures
    from .top_keys import KeyChange

UP = ("up", "published")  # the states of a carrier that works
LOG_LEVELS = ("debug", "info", "warning", "error")
TURN = 5.0  # seconds for a loop to turn; one that takes longer is stuck


class UpgradeReport(NamedTuple):
    """A process that has taken the place of this one."""

    pid: int
    """Its ID."""
    version: str
    """That of its relay."""


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
    :param via: the hops to the target, the nearest first.
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
    :param labels: its labels by the names of their options, such as ``tag``; none is empty.
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
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStatus:
    """The part of a :class:`~relay.engine.records.ConnectionRecord` that operators see.

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
    :param resumes: how often its stream has gone on over another carrier.
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
    resumes: int = 0

    @classmethod
    def of(cls, tunnel: str, record: ConnectionRecord) -> ConnectionStatus:
        """Return that of a connection.

        :param tunnel: the tunnel's name.
        :param record: the connection.
        """
        return cls(
            id=record.id,
            tunnel=tunnel,
            peer=format_address(record.peer),
            target=record.target,
            age=record.age,
            received=record.received,
            sent=record.sent,
            engine=record.engine,
            state=record.state,
            reason=record.reason,
            started=record.started,
            by=record.by,
            warm=record.warm,
            identity=record.identity and record.identity.as_fields(),
            rule=record.rule,
            resumes=record.resumes,
        )

    @property
    def client(self) -> str:
        """The client as text: its address, and its identity where that says more; empty if neither is known."""
        identity = self.identity or {"kind": "", "name": ""}
        return client_text(self.peer, identity["kind"], identity["name"]) if self.peer or self.identity else ""


class ReloadStatus(NamedTuple):
    """The reloads of a process."""

    succeeded: int = 0
    """Those that were done."""
    failed: int = 0
    """Those that have changed nothing."""
    was_successful: bool = True
    """Whether the last one was done; true before the first one."""
    last_success: float = 0.0
    """When the last one was done, or the start, in seconds since 1970; 0 if the process has no file."""


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
    :param resumes: the figures of its resumable streams and of those of its workers; ``None`` if not asked for.
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
    resumes: ResumeFigures | None = None


@dataclass(frozen=True, slots=True)
class TunnelVerdict:
    """The effect of a reload on one tunnel.

    :param name: of the tunnel.
    :param verdict: ``same``, ``tuned``, ``rerouted``, ``moved``, ``gone`` or ``new``.
    :param detail: what has changed; empty for ``same``.
    """

    name: str
    verdict: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """The effect of a reload.

    :param verdicts: one for each tunnel, before or after.
    :param dry_run: whether nothing was changed.
    :param keys: the keys at the top of the file that have changed.
    """

    verdicts: tuple[TunnelVerdict, ...]
    dry_run: bool = False
    keys: tuple[KeyChange, ...] = ()


MOST_ROWS = 10_000
"""The rows of an answer at most: the bans that last longest, and the quotas of which most was used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BanStatus:
    """One ban.

    :param tunnel: the name of the tunnel.
    :param limit: the name of the limit that bans.
    :param key: the clients that count together: an address, a network, an identity, or ``*`` for all of the tunnel.
    :param until: its end, in seconds since 1970.
    """

    tunnel: str
    limit: str
    key: str
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaStatus:
    """The use of one quota in the current period.

    :param tunnel: the name of the tunnel.
    :param limit: the name of the limit.
    :param key: as for :class:`BanStatus`.
    :param used: bytes.
    :param quota: the bytes that are allowed.
    :param since: when the period began, in seconds since 1970.
    """

    tunnel: str
    limit: str
    key: str
    used: int
    quota: int
    since: float


def hop_state(receive: TunnelListener, make_send: Dialer) -> tuple[str, str]:
    """Return the state of the carriers under a tunnel, and the last error of one that is not up.

    :returns: ``up`` and an empty text if all are up; why no target is, if there are several.
    """
    if (state := make_send.state) not in UP:
        return state, make_send.last_error or ""
    if (state := receive.state) not in UP:
        return state, ""
    return "up", (make_send.last_error or "") if target_group(make_send) is not None else ""


def worker_problem(tunnel: Tunnel | PoolTunnel) -> str:
    """Return which workers of a tunnel do not answer; empty if it has none or all answer. Asks no worker."""
    problem: str = getattr(tunnel, "problem", "")
    return problem


class Rates:
    """Bytes per second, received and sent, by the name of a tunnel or the id of a connection."""

    def __init__(self) -> None:
        self._moved: Mapping[str, tuple[int, int]] = {}
        self._rates: dict[str, tuple[float, float]] = {}

    def look(self, moved: Mapping[str, tuple[int, int]], passed: float) -> None:
        """Take a sample of the bytes so far.

        :param moved: by key: the bytes received and sent.
        :param passed: seconds since the last sample; 0 if there is none.
        """
        known, self._moved, self._rates = self._moved, moved, {}
        if passed > 0.0:
            self._rates = {
                key: (max(0, received - known[key][0]) / passed, max(0, sent - known[key][1]) / passed)
                for key, (received, sent) in moved.items()
                if key in known
            }

    def of(self, key: str) -> tuple[float, float] | tuple[None, None]:
        """Return the rates of a key; ``None`` for each if it is new."""
        return self._rates.get(key, (None, None))


def total(all_stats: Iterable[Stats]) -> Stats:
    """Add up the statistics of several tunnels."""
    failed: Counter[str] = Counter()
    accepted = active = received = sent = hits = misses = 0
    for stats in all_stats:
        accepted, active = accepted + stats.accepted, active + stats.active
        received, sent = received + stats.received, sent + stats.sent
        hits, misses = hits + stats.warm_hits, misses + stats.warm_misses
        failed.update(stats.failed)
    return Stats(accepted, active, received, sent, dict(failed), hits, misses)
