"""The page of metrics of a running relay, for Prometheus.

All counters are those that the tunnels keep anyway; a scrape reads them on the thread of its request. prometheus_client
provides the metrics of the process.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Iterable, Iterator

from ..carriers.listing import CarrierStatus
from ..daemon.instance import Instance
from ..daemon.status import TunnelStatus
from ..eventloop import reserve
from ..eventloop.histogram import Durations, Histogram
from ..eventloop.pipes import PipePool
from .metric_families import FAMILIES, LAGS, Facts, escaped

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsPage:
    """The metrics of a running relay.

    :param instance: the running relay.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._lags = _LoopLags(instance)

    def render(self) -> bytes:
        """Return the page; from any thread."""
        facts = self._facts()
        lines: list[str] = []
        for family in FAMILIES:
            lines += (f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}")
            lines += family.samples(family.name, facts)
        lines.append("")
        page = "\n".join(lines).encode(errors="replace") + _of_process()
        self._lags.measure(tunnel.name for _, tunnel in facts.tunnels if _is_busy(tunnel))
        return page

    def _facts(self) -> Facts:
        named, counters = [], []
        for tunnel in self._instance.tunnels():
            name = escaped(tunnel.name)
            named.append((name, tunnel))
            if tunnel.metrics is not None:
                counters.append((name, tunnel.metrics))
        carriers = list(_merged(self._instance.carriers()))
        return Facts(
            self._instance.status(figures=True), named, counters, carriers, PipePool.usage(), self._lags.counted()
        )


def _of_process() -> bytes:
    """Return the metrics of the process. What reads them is imported with the first scrape."""
    with reserve.lent():  # it opens files of /proc, too
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        return generate_latest(registry)


class _LoopLags:
    """Times that the loops of tunnels take to turn. Each scrape measures once, for the next one.

    :param instance: the running relay.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._durations = Durations(LAGS)
        self._lock = threading.Lock()  # for the durations; two clients may scrape at a time
        self._new: collections.deque[float] = collections.deque()  # in seconds; appended by the relay threads
        self._asked: set[str] = set()  # whose loops have not turned yet

    def counted(self) -> Histogram:
        with self._lock:
            self._durations.add([self._new.popleft() for _ in range(len(self._new))])
            return self._durations.counted

    def measure(self, names: Iterable[str]) -> None:
        """Measure the loops of these tunnels, except those that are still being measured."""
        with self._lock:
            asking = set(names) - self._asked
            self._asked |= asking  # before a loop can turn
            self._asked -= asking - set(self._instance.time_loops(asking, self._on_turn))

    def _on_turn(self, name: str, seconds: float) -> None:
        self._new.append(seconds)
        self._asked.discard(name)


def _is_busy(tunnel: TunnelStatus) -> bool:
    return tunnel.metrics is not None and any(tunnel.metrics.states.values())


def _merged(carriers: Iterable[CarrierStatus]) -> Iterator[tuple[str, CarrierStatus]]:
    """Put together the carriers with the same labels, which differ in their options only: one that is down shows."""
    groups: dict[tuple[str, str, int, int], list[CarrierStatus]] = {}
    for carrier in carriers:
        key = carrier.name, carrier.kind, carrier.number or 1, carrier.worker or 0
        groups.setdefault(key, []).append(carrier)
    for (name, kind, number, worker), group in groups.items():
        worst = next((carrier for carrier in group if carrier.state != "up"), group[0])
        counts = (sum(each) for each in zip(*(carrier.metrics.counts for carrier in group), strict=True))
        yield (
            f'carrier="{escaped(name)}",kind="{escaped(kind)}",number="{number}",worker="{worker}"',
            dataclasses.replace(
                worst,
                losses=sum(carrier.losses for carrier in group),
                streams=sum(carrier.streams for carrier in group),
                rtt=next((carrier.rtt for carrier in group if carrier.rtt is not None), None),
                metrics=Histogram(tuple(counts), sum(carrier.metrics.total for carrier in group)),
            ),
        )
