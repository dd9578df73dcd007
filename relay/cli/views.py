"""Content of the live table: the current state of one tunnel or of many."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..daemon.member import MemberState, Snapshot
from ..daemon.status import UP, Rates, hop_state, total, worker_problem
from ..engine.records import ConnectionRecord, Stats
from ..engine.tunnel import Tunnel
from .live import Column, Content
from .output import size, summary

if TYPE_CHECKING:  # for tunnels in workers only
    from ..spawning.pool_tunnel import PoolTunnel

_BETWEEN = 0.4  # minimum seconds between two samples: a shorter time gives no useful rate
_ENDED = 8  # finished connections that are shown

_LIVE = (
    Column("client", least=21),
    Column("state"),
    Column("target", least=20),
    Column("age", is_figure=True),
    Column("received", is_figure=True),
    Column("sent", is_figure=True),
    Column("received/s", optional=True, is_figure=True),
    Column("sent/s", optional=True, is_figure=True),
)
_TUNNELS = (
    Column("tunnel", least=12, is_name=True),
    Column("state"),
    Column("from → to", least=36),
    Column("open", is_figure=True),
    Column("total", is_figure=True),
    Column("received", optional=True, is_figure=True),
    Column("sent", optional=True, is_figure=True),
    Column("failed", is_figure=True),
    Column("received/s", optional=True, is_figure=True),
    Column("sent/s", optional=True, is_figure=True),
)


class TimedRates(Rates):
    """The rates as texts, from samples that may come at any time.

    :param clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._taken = clock()

    def sample(self, figures: Mapping[str, tuple[int, int]]) -> None:
        """Take a sample, unless the last one was just before: the bytes that each key has received and sent so far."""
        now = self._clock()
        if (passed := now - self._taken) >= _BETWEEN:
            self._taken = now
            self.look(figures, passed)

    def texts(self, key: str) -> tuple[str, str]:
        """Return the rates of a key; empty if it is new."""
        received, sent = self.of(key)
        return ("", "") if received is None or sent is None else (size(received), size(sent))


class _Ended:
    """The latest finished connections of one tunnel or of many."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._last: collections.deque[tuple[str, ConnectionRecord]] = collections.deque(maxlen=_ENDED)

    def look(self, name: str, stats: Stats, recent: Callable[[], Sequence[ConnectionRecord]]) -> None:
        """Add the connections of a tunnel that have finished since the last call."""
        count = stats.accepted - stats.active
        new = min(_ENDED, count - self._counts.get(name, 0))
        self._counts[name] = count
        if new > 0:
            # A connection that finishes between the two calls is returned again next time.
            self._last.extend(one for record in recent()[-new:] if (one := (name, record)) not in self._last)

    def lines(self, *, named: bool) -> list[str]:
        """Return a line for each, the newest first."""
        return [f"{name}: {ended(record)}" if named else ended(record) for name, record in reversed(self._last)]


def ended(record: ConnectionRecord) -> str:
    """Format a finished connection as one line; its reason comes first."""
    who, target = record.client, record.target or "nowhere"
    figures = f"{size(record.received)} received, {size(record.sent)} sent"
    return f"{record.reason} after {age(record.age)}: {who} → {target}, {figures}"


def age(seconds: float) -> str:
    """Format a duration briefly."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = int(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h" if minutes < 2880 else f"{minutes // 1440} d"


def shown_state(state: str, hops: str) -> str:
    """Return the state of a tunnel as all tables show it: one that listens has the state of a hop that is not up.

    :param state: that of the tunnel.
    :param hops: that of its carriers; see :func:`hop_state`.
    """
    return hops if state == MemberState.LISTENING.value and hops not in UP else state


class TunnelView:
    """One tunnel and its connections.

    :param tunnel: the tunnel.
    :param title: its listening address and its target.
    :param hops: returns the state of the hops and their problem; see :func:`hop_state`.
    :param clock: returns the time in seconds.
    """

    def __init__(
        self,
        tunnel: Tunnel | PoolTunnel,
        title: str,
        hops: Callable[[], tuple[str, str]] = lambda: ("up", ""),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.closing = ""
        """The message about its end, while it is closing."""
        self._tunnel = tunnel
        self._title = title
        self._hops = hops
        self._rates = TimedRates(clock)
        self._ended = _Ended()

    def __call__(self) -> Content:
        """Return the current content."""
        stats = self._tunnel.stats()
        self._ended.look(self._tunnel.name, stats, self._tunnel.recent)
        records = self._tunnel.connections()
        figures = {record.id: (record.received, record.sent) for record in records}
        self._rates.sample({**figures, "": (stats.received, stats.sent)})
        state, problem = self._hops()
        errors = [f"hops: {state}{problem and f': {problem}'}"] if state != "up" else []
        if stuck := worker_problem(self._tunnel):
            errors.append(stuck)
        shows_targets = len({record.target for record in records}) > 1
        columns = [column for column in _LIVE if shows_targets or column.title != "target"]
        return Content(
            head=[self._title, *([self.closing] if self.closing else [])],
            columns=columns,
            rows=[self._row(record, shows_targets) for record in records],
            errors=errors,
            ended=self._ended.lines(named=False),
            foot=[_foot(stats, self._rates.texts(""))],
        )

    def _row(self, record: ConnectionRecord, shows_target: bool) -> list[str]:
        target = [record.target or ""] if shows_target else []
        figures = [age(record.age), size(record.received), size(record.sent), *self._rates.texts(record.id)]
        return [record.client, record.state, *target, *figures]


@dataclass(frozen=True, slots=True)
class Watched:
    """The current state of one of many tunnels.

    :param name: its name.
    :param state: its state, in a word.
    :param title: its listening address and its target; those of the configuration while it is not open.
    :param problem: its problem; empty if it has none.
    :param tunnel: the tunnel, if it is or was open.
    :param listens: whether it listens.
    """

    name: str
    state: str
    title: str = ""
    problem: str = ""
    tunnel: Snapshot | None = None
    listens: bool = False


def watched(member: Snapshot) -> Watched:
    """Return the current state of a tunnel of a group."""
    state = member.state
    if not member.has_opened:
        return Watched(member.name, state.value, member.plan.configured, member.problem)
    if not state.accepts:
        return Watched(member.name, state.value, member.title, member.problem, member)
    hops, problem = hop_state(member.receive, member.make_send)
    word, problem = shown_state(state.value, hops), worker_problem(member.relay) or problem
    return Watched(member.name, word, member.title, problem, member, listens=True)


class FleetView:
    """Many tunnels.

    :param look: returns their current states.
    :param clock: returns the time in seconds.
    """

    def __init__(self, look: Callable[[], Sequence[Watched]], clock: Callable[[], float] = time.monotonic) -> None:
        self.closing = ""
        """The message about their end, while they are closing."""
        self._look = look
        self._rates = TimedRates(clock)
        self._ended = _Ended()

    def __call__(self) -> Content:
        """Return the current content: tunnels with a problem first, then by open connections."""
        members = self._look()
        stats = {member.name: member.tunnel.stats() for member in members if member.tunnel is not None}
        for member in members:
            if member.tunnel is not None:
                self._ended.look(member.name, stats[member.name], member.tunnel.recent)
        all_stats = total(stats.values())
        figures = {name: (one.received, one.sent) for name, one in stats.items()}
        self._rates.sample({**figures, "": (all_stats.received, all_stats.sent)})
        order = sorted(members, key=lambda member: (not member.problem, -_active(stats.get(member.name))))
        count = sum(member.listens for member in members)
        return Content(
            head=[self.closing or f"{count} of {len(members)} tunnels listen"],
            columns=_TUNNELS,
            rows=[self._row(member, stats.get(member.name)) for member in order],
            errors=[f"{member.name}: {member.problem}" for member in members if member.problem],
            ended=self._ended.lines(named=True),
            foot=[_foot(all_stats, self._rates.texts(""))],
        )

    def _row(self, member: Watched, stats: Stats | None) -> list[str]:
        title = member.title.removeprefix("127.0.0.1")  # as LISTEN is written; 80 columns have room for little
        if stats is None:
            return [member.name, member.state, title, *[""] * 7]
        counts = [str(stats.active), str(stats.accepted)]
        figures = [*counts, size(stats.received), size(stats.sent), str(sum(stats.failed.values()))]
        return [member.name, member.state, title, *figures, *self._rates.texts(member.name)]


def _active(stats: Stats | None) -> int:
    return stats.active if stats else 0


def _foot(stats: Stats, rates: tuple[str, str]) -> str:
    now = f"; now {rates[0]}/s received, {rates[1]}/s sent" if set(rates) - {"", "0 B"} else ""
    return f"{stats.active} open of {summary(stats)}{now}"
