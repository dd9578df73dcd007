"""The state of a running relay for the status page: samples, rates, and the part of each table that a page shows.

A sample is taken once for all pages. A page shows a view of it: a filter, and one page of each table in some order.
"""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..daemon.failures import NotFoundError
from ..daemon.instance import Instance
from ..daemon.status import ConnectionStatus, Rates, TunnelStatus
from .health import problem_of
from .tables import ROWS, Tables, View, ended_at, problem_shown, short

SPAN = 120.0  # seconds of the graphs
LONGEST_LINE = 500  # characters of a line of the log
BANS = 100  # those that last longest
ENDED = 100  # connections that have ended, of all tunnels
TUNNELS_AT_ONCE = 50  # whose ended connections one sample reads: a record takes 5 µs, and each tunnel has 100


class _Point(NamedTuple):
    """One moment of the graphs: the rates since the sample before it."""

    time: float
    received: float
    sent: float
    active: int
    accepted: float


class _Totals(NamedTuple):
    """The sums of all tunnels."""

    accepted: int = 0
    active: int = 0
    received: int = 0
    sent: int = 0


class _Sample(NamedTuple):
    """The state at one moment."""

    time: float
    facts: Mapping[str, Any]  # the parts that are the same in each view
    tables: Tables


class Overview:
    """The state of a running relay. Belongs to one thread at a time.

    :param instance: the running relay.
    :param clock: returns the time in seconds since 1970.
    """

    def __init__(self, instance: Instance, clock: Callable[[], float] = time.time) -> None:
        self._instance = instance
        self._clock = clock
        self._sample: _Sample | None = None
        self._totals = _Totals()
        self._history: collections.deque[_Point] = collections.deque()
        self._tunnel_rates = Rates()
        self._connection_rates = Rates()
        self._ended: dict[str, ConnectionStatus] = {}
        self._ended_counts: dict[str, int] = {}

    def refresh(self) -> None:
        """Take a sample."""
        now = self._clock()
        status = self._instance.status()
        tunnels = self._instance.tunnels()
        connections = self._instance.connections()
        carriers = self._instance.carriers()
        bans = self._instance.bans(most=BANS)
        self._read_ended(tunnels)
        not_ready = {tunnel.name: why for tunnel in tunnels if (why := problem_of(tunnel, now))}
        shown = ((tunnel.name, problem_shown(tunnel, not_ready.get(tunnel.name, ""))) for tunnel in tunnels)
        problems = {name: problem for name, problem in shown if problem}
        self._compute_rates(now, tunnels, connections)
        is_ready = not status.draining and not any(tunnel.required and tunnel.name in not_ready for tunnel in tunnels)
        facts = {
            "time": round(now, 3),
            "instance": {
                "version": status.version,
                "pid": status.pid,
                "started": status.started,
                "config": short(status.config),
                "draining": status.draining,
                "ready": is_ready,
            },
            "totals": {
                **self._totals._asdict(),
                "tunnels": len(tunnels),
                "listening": sum(tunnel.state == "listening" for tunnel in tunnels),
                "problems": len(problems),
                "failed": _failed(tunnels),
            },
            "history": [[round(figure, 3) for figure in point] for point in self._history],
            "log": [
                {**line._asdict(), "message": short(line.message, LONGEST_LINE)}
                for line in reversed(self._instance.log()[-ROWS:])
            ],
        }
        ended = sorted(self._ended.values(), key=ended_at, reverse=True)
        rates = self._tunnel_rates, self._connection_rates
        self._sample = _Sample(now, facts, Tables(tunnels, problems, connections, ended, carriers, bans, *rates))

    def rest(self) -> None:
        """Forget the sample, because no page is open. The graphs and the ended connections stay."""
        self._sample = None
        self._tunnel_rates, self._connection_rates = Rates(), Rates()

    def render(self, views: Collection[View]) -> dict[View, bytes]:
        """Return the last sample as JSON, for each of some views."""
        assert self._sample is not None, "refresh() comes first"
        facts, tables = self._sample.facts, self._sample.tables
        return {view: json.dumps({**facts, **tables.shown(view)}).encode() for view in views}

    def _compute_rates(
        self, now: float, tunnels: Sequence[TunnelStatus], connections: Sequence[ConnectionStatus]
    ) -> None:
        """Compare the counters with those of the last sample, and add a point to the graphs."""
        passed = now - self._sample.time if self._sample is not None else 0.0
        figures = {tunnel.name: tunnel.figures for tunnel in tunnels if tunnel.figures is not None}
        self._tunnel_rates.look({name: (one.received, one.sent) for name, one in figures.items()}, passed)
        self._connection_rates.look({each.id: (each.received, each.sent) for each in connections}, passed)
        totals = _Totals(
            sum(each.accepted for each in figures.values()),
            sum(each.active for each in figures.values()),
            sum(each.received for each in figures.values()),
            sum(each.sent for each in figures.values()),
        )
        if passed > 0.0:
            old = self._totals
            received, sent = totals.received - old.received, totals.sent - old.sent
            rates = [max(0, moved) / passed for moved in (received, sent, totals.accepted - old.accepted)]
            self._history.append(_Point(now, rates[0], rates[1], totals.active, rates[2]))
        while self._history and not now - SPAN <= self._history[0].time <= now:
            self._history.popleft()
        self._totals = totals

    def _read_ended(self, tunnels: Sequence[TunnelStatus]) -> None:
        """Read the connections that have ended since the last sample, of some tunnels at most."""
        changed = []
        for name in self._ended_counts.keys() - {tunnel.name for tunnel in tunnels}:  # a reload has removed it
            del self._ended_counts[name]
        for tunnel in tunnels:
            count = tunnel.figures.accepted - tunnel.figures.active if tunnel.figures is not None else 0
            if count != self._ended_counts.get(tunnel.name, 0):
                changed.append((tunnel.name, count))
        for name, count in changed[:TUNNELS_AT_ONCE]:
            self._ended_counts[name] = count
            try:
                self._ended.update((each.id, each) for each in self._instance.recent(name))
            except NotFoundError:  # a reload has removed it meanwhile
                continue
        if len(self._ended) > ENDED:
            newest = sorted(self._ended.values(), key=ended_at)[-ENDED:]
            self._ended = {each.id: each for each in newest}


def _failed(tunnels: Iterable[TunnelStatus]) -> dict[str, int]:
    """Return the reasons of all failed connections with their counts, the most frequent first."""
    counts: collections.Counter[str] = collections.Counter()
    for tunnel in tunnels:
        if tunnel.figures is not None:
            counts.update(tunnel.figures.failed)
    return dict(counts.most_common())
