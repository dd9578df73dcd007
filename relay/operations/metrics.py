"""Metrics of a running relay in the text format of Prometheus (exposition format 0.0.4).

All counters are those that the tunnels keep anyway; a scrape reads them on the thread of its request.

prometheus_client provides the metrics of the process. The others are written here: its writer takes 9 µs for a sample,
and 500 tunnels have 25,000.
"""

from __future__ import annotations

import functools
import itertools
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from ..engine.records import Histogram, Metrics
from ..engine.statistics import AGES, CONNECT_TIMES
from ..eventloop.pipes import PipePool
from .instance import CarrierStatus, Instance, InstanceStatus, TunnelStatus

__all__ = ["CONTENT_TYPE", "FAMILIES", "Family", "MetricsPage"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_UP = ("listening", "paused")  # the states of a tunnel whose listener is open
_EXHAUSTED = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")  # what accepting a client usually fails with


class _Facts(NamedTuple):
    """The state at one scrape."""

    process: InstanceStatus
    tunnels: Sequence[tuple[str, TunnelStatus]]  # with their names as label values
    counters: Sequence[tuple[str, Metrics]]  # of the tunnels that have been open
    carriers: Sequence[tuple[str, CarrierStatus]]  # with their labels
    pipes: tuple[int, int]


class Family(NamedTuple):
    """All samples of one name."""

    name: str
    kind: str
    """``counter``, ``gauge`` or ``histogram``."""
    labels: tuple[str, ...]
    help: str
    samples: Callable[[_Facts], Iterable[str]]
    """Returns the lines, each without the name of the family."""


class MetricsPage:
    """The metrics of a running relay.

    :param instance: the running relay.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)

    def render(self) -> bytes:
        """Return the page; from any thread."""
        facts = self._facts()
        lines: list[str] = []
        for family in FAMILIES:
            lines += (f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}")
            name = family.name
            lines += [name + sample for sample in family.samples(facts)]
        lines.append("")
        return "\n".join(lines).encode(errors="replace") + generate_latest(self._process)

    def _facts(self) -> _Facts:
        tunnels = {tunnel.name: tunnel for tunnel in self._instance.tunnels()}
        named = [(_escaped(name), tunnel) for name, tunnel in tunnels.items()]
        counters = [(name, tunnel.metrics) for name, tunnel in named if tunnel.metrics is not None]
        carriers = list(_merged(self._instance.carriers()))
        return _Facts(self._instance.status(), named, counters, carriers, PipePool.usage())


@functools.lru_cache(4096)
def _escaped(value: str) -> str:
    """Return a label value as it stands between its quotation marks."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _merged(carriers: Iterable[CarrierStatus]) -> Iterator[tuple[str, CarrierStatus]]:
    """Put together the carriers of the same name, which differ in their options only: their labels are the same."""
    by_name: dict[tuple[str, str], list[CarrierStatus]] = {}
    for carrier in carriers:
        by_name.setdefault((carrier.name, carrier.kind), []).append(carrier)
    for (name, kind), group in by_name.items():
        best = next((carrier for carrier in group if carrier.state == "up"), group[0])
        yield (
            f'{{carrier="{_escaped(name)}",kind="{_escaped(kind)}"}}',
            CarrierStatus(
                name,
                kind,
                best.state,
                best.since,
                sum(carrier.losses for carrier in group),
                sum(carrier.streams for carrier in group),
                best.rtt,
                best.error,
            ),
        )


# -- the samples of each family ---------------------------------------------------------------------------------------


def _of_tunnels(value: Callable[[TunnelStatus], float | None]) -> Callable[[_Facts], Iterable[str]]:
    """Return the samples of a figure that each tunnel has, unless it is ``None``."""

    def samples(facts: _Facts) -> Iterable[str]:
        found = ((name, value(tunnel)) for name, tunnel in facts.tunnels)
        return [f'{{tunnel="{name}"}} {figure}' for name, figure in found if figure is not None]

    return samples


def _of_carriers(value: Callable[[CarrierStatus], float | None]) -> Callable[[_Facts], Iterable[str]]:
    def samples(facts: _Facts) -> Iterable[str]:
        found = ((labels, value(carrier)) for labels, carrier in facts.carriers)
        return [f"{labels} {figure}" for labels, figure in found if figure is not None]

    return samples


def _counted(label: str, counts: Callable[[Metrics], Mapping[str, int]]) -> Callable[[_Facts], Iterable[str]]:
    """Return the samples of a mapping that each tunnel has."""

    def samples(facts: _Facts) -> Iterable[str]:
        for name, metrics in facts.counters:
            begin = f'{{tunnel="{name}",{label}="'
            for key, count in counts(metrics).items():
                yield f'{begin}{_escaped(key)}"}} {count}'

    return samples


def _bytes(facts: _Facts) -> Iterable[str]:
    for name, it in facts.counters:
        yield f'{{tunnel="{name}",direction="in",engine="copy"}} {it.received - it.spliced_received}'
        yield f'{{tunnel="{name}",direction="in",engine="splice"}} {it.spliced_received}'
        yield f'{{tunnel="{name}",direction="out",engine="copy"}} {it.sent - it.spliced_sent}'
        yield f'{{tunnel="{name}",direction="out",engine="splice"}} {it.spliced_sent}'


def _histogram(bounds: Sequence[float], value: Callable[[Metrics], Histogram]) -> Callable[[_Facts], Iterable[str]]:
    ends = [f'",le="{bound}"}} ' for bound in (*bounds, "+Inf")]

    def samples(facts: _Facts) -> Iterable[str]:
        for name, metrics in facts.counters:
            counts, total = value(metrics)
            begin = f'_bucket{{tunnel="{name}'
            below = 0
            for end, below in zip(ends, itertools.accumulate(counts), strict=True):
                yield f"{begin}{end}{below}"
            yield f'_sum{{tunnel="{name}"}} {total}'
            yield f'_count{{tunnel="{name}"}} {below}'

    return samples


def _accept_errors(facts: _Facts) -> Iterable[str]:
    counts = dict.fromkeys(_EXHAUSTED, 0)
    for _, metrics in facts.counters:
        for name, count in metrics.accept_errors.items():
            counts[name] = counts.get(name, 0) + count
    return [f'{{errno="{_escaped(name)}"}} {count}' for name, count in counts.items()]


def _build(facts: _Facts) -> Iterable[str]:
    return [f'{{version="{_escaped(facts.process.version)}",python="{platform.python_version()}"}} 1']


def _is_ready(tunnel: TunnelStatus) -> float | None:
    probe = tunnel.probe
    return None if probe is None else int(bool(probe.finished) and not probe.problem)


FAMILIES = (
    Family(
        "relay_connections_accepted_total",
        "counter",
        ("tunnel",),
        "Connections accepted.",
        lambda facts: [f'{{tunnel="{name}"}} {metrics.accepted}' for name, metrics in facts.counters],
    ),
    Family(
        "relay_connections_active",
        "gauge",
        ("tunnel", "state"),
        "Connections that have not ended.",
        _counted("state", lambda metrics: metrics.states),
    ),
    Family(
        "relay_connections_total",
        "counter",
        ("tunnel", "reason"),
        "Connections that have ended.",
        _counted("reason", lambda metrics: metrics.ended),
    ),
    Family(
        "relay_bytes_total",
        "counter",
        ("tunnel", "direction", "engine"),
        "Bytes from the clients (in) and to them (out), those of open connections included.",
        _bytes,
    ),
    Family(
        "relay_connect_seconds",
        "histogram",
        ("tunnel",),
        "Time from the start of the dial until the target was connected, of the connections that have ended.",
        _histogram(CONNECT_TIMES, lambda metrics: metrics.connect_times),
    ),
    Family(
        "relay_connection_seconds",
        "histogram",
        ("tunnel",),
        "Time from the acceptance to the end of a connection.",
        _histogram(AGES, lambda metrics: metrics.ages),
    ),
    Family(
        "relay_denied_total",
        "counter",
        ("tunnel", "rule"),
        "Clients that were denied: by an access list, or for a wrong user or password.",
        _counted("rule", lambda metrics: metrics.denied),
    ),
    Family(
        "relay_tunnel_up",
        "gauge",
        ("tunnel",),
        "Whether the listener of the tunnel is open.",
        _of_tunnels(lambda tunnel: int(tunnel.state in _UP)),
    ),
    Family(
        "relay_tunnel_ready",
        "gauge",
        ("tunnel",),
        "Whether the last probe came through to the target.",
        _of_tunnels(_is_ready),
    ),
    Family(
        "relay_tunnel_last_probe_seconds",
        "gauge",
        ("tunnel",),
        "Duration of the last probe.",
        _of_tunnels(lambda tunnel: tunnel.probe.seconds if tunnel.probe and tunnel.probe.finished else None),
    ),
    Family(
        "relay_tunnel_last_probe_timestamp_seconds",
        "gauge",
        ("tunnel",),
        "End of the last probe, seconds since 1970.",
        _of_tunnels(lambda tunnel: tunnel.probe.finished if tunnel.probe and tunnel.probe.finished else None),
    ),
    Family(
        "relay_carrier_up",
        "gauge",
        ("carrier", "kind"),
        "Whether the SSH connection or I2P session is up.",
        _of_carriers(lambda carrier: int(carrier.state == "up")),
    ),
    Family(
        "relay_carrier_losses_total",
        "counter",
        ("carrier", "kind"),
        "Connections of the carrier that were lost.",
        _of_carriers(lambda carrier: carrier.losses),
    ),
    Family(
        "relay_carrier_streams",
        "gauge",
        ("carrier", "kind"),
        "Open streams of the carrier.",
        _of_carriers(lambda carrier: carrier.streams),
    ),
    Family(
        "relay_carrier_rtt_seconds",
        "gauge",
        ("carrier", "kind"),
        "Last round trip of the carrier, if it measures one.",
        _of_carriers(lambda carrier: carrier.rtt),
    ),
    Family(
        "relay_accept_errors_total",
        "counter",
        ("errno",),
        "Failures to accept a client, by the error of the system.",
        _accept_errors,
    ),
    Family("relay_pipes_used", "gauge", (), "Open pipes for splicing.", lambda facts: [f" {facts.pipes[0]}"]),
    Family(
        "relay_pipes_free",
        "gauge",
        (),
        "Further pipes that relay may open.",
        lambda facts: [f" {facts.pipes[1]}"],
    ),
    Family(
        "relay_draining",
        "gauge",
        (),
        "Whether relay is about to end.",
        lambda facts: [f" {int(facts.process.draining)}"],
    ),
    Family("relay_build_info", "gauge", ("version", "python"), "The version of relay and of Python.", _build),
)
"""All metrics of relay, in the order of the page; those of the process follow."""
