"""The families of metrics, and the samples of each in the text format of Prometheus (exposition format 0.0.4).

All samples of a family about one tunnel are one text with places for the figures, which is made once: 500 tunnels have
25,000 samples. prometheus_client takes 9 µs for each.
"""

from __future__ import annotations

import functools
import itertools
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..carriers.listing import CarrierStatus
from ..daemon.status import InstanceStatus, ReloadStatus, TunnelStatus
from ..engine.options import LABELS
from ..engine.records import Metrics
from ..engine.statistics import AGES
from ..eventloop.histogram import CONNECT_TIMES, Histogram

if TYPE_CHECKING:  # a relay whose tunnels have one target starts faster without it
    from ..targets.group import TargetState
    from ..transports.resume.figures import ResumeFigures

LAGS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0)
"""The bounds of ``relay_loop_lag_seconds``."""

_UP = ("listening", "paused")  # the states of a tunnel whose listener is open
_WORKER_STATES = ("starting", "running", "stuck", "waiting", "ended")
_EXHAUSTED = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")  # what accepting a client usually fails with


class Facts(NamedTuple):
    """The state at one scrape."""

    process: InstanceStatus
    tunnels: Sequence[tuple[str, TunnelStatus]]
    """With their names as label values."""
    counters: Sequence[tuple[str, Metrics]]
    """Of the tunnels that have been open."""
    carriers: Sequence[tuple[str, CarrierStatus]]
    """With their labels."""
    pipes: tuple[int, int]
    """Open pipes, and those that may be opened."""
    lags: Histogram
    """By the bounds :data:`LAGS`."""


_Samples = Callable[[str, Facts], Iterable[str]]


class Family(NamedTuple):
    """All samples of one name."""

    name: str
    kind: str
    """``counter``, ``gauge`` or ``histogram``."""
    labels: tuple[str, ...]
    help: str
    samples: _Samples
    """Takes the name of the family; returns the lines, some of them joined."""


# -- the text ---------------------------------------------------------------------------------------------------------

_MOST = 8192  # texts that are remembered; each has about 1 kB


@functools.lru_cache(4096)
def escaped(value: str) -> str:
    """Return a label value as it stands between its quotation marks."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


@functools.lru_cache(_MOST)
def counts(name: str, tunnel: str, label: str, keys: tuple[str, ...]) -> str:
    """Return the samples of a mapping, with places for its values.

    :param name: of the family.
    :param tunnel: its name as a label value.
    :param label: of the keys.
    :param keys: of the mapping.
    """
    begin = f'{name}{{tunnel="{tunnel}",{label}="'
    return "\n".join([f'{_literal(begin + escaped(key))}"}} %s' for key in keys])


@functools.lru_cache(_MOST)
def byte_counts(name: str, tunnel: str) -> str:
    """Return the samples of bytes, with places: copied and spliced from the clients, then those to them.

    :param name: of the family.
    :param tunnel: its name as a label value.
    """
    begin = _literal(f'{name}{{tunnel="{tunnel}",direction="')
    kinds = itertools.product(("in", "out"), ("copy", "splice"))
    return "\n".join([f'{begin}{direction}",engine="{engine}"}} %s' for direction, engine in kinds])


@functools.lru_cache(_MOST)
def histogram(name: str, labels: str, bounds: tuple[float, ...]) -> str:
    """Return the text of a histogram, with places for the cumulative counts, the sum and the count.

    :param name: of the family.
    :param labels: as they stand between the braces.
    :param bounds: of the durations.
    """
    given = _literal(labels)
    begin = f"{name}_bucket{{{given}{',' if given else ''}le="
    buckets = [f'{begin}"{bound}"}} %s' for bound in (*bounds, "+Inf")]
    braced = f"{{{given}}}" if given else ""
    return "\n".join([*buckets, f"{name}_sum{braced} %s", f"{name}_count{braced} %s"])


_last: dict[str, tuple[tuple[object, ...], str]] = {}  # template → its last figures, and the text with them


def filled(template: str, figures: tuple[object, ...]) -> str:
    """Return a template with figures: most tunnels of many are idle, and have the same as at the last scrape.

    :param template: a text with places.
    :param figures: one for each place, or a histogram.
    """
    known = _last.get(template)
    if known is not None and known[0] == figures:
        return known[1]
    if isinstance(figures, Histogram):
        below = (*itertools.accumulate(figures.counts),)
        text = template % (*below, figures.total, below[-1])
    else:
        text = template % figures
    if len(_last) >= _MOST:
        _last.clear()
    _last[template] = figures, text
    return text


def _literal(text: str) -> str:
    """Return a text that the operator ``%`` leaves as it is."""
    return text.replace("%", "%%")


# -- the samples ------------------------------------------------------------------------------------------------------


def _single(value: Callable[[Facts], float | None]) -> _Samples:
    """Return the sample of a figure that the process has, unless it is ``None``."""

    def samples(name: str, facts: Facts) -> Iterable[str]:
        figure = value(facts)
        return [] if figure is None else [f"{name} {figure}"]

    return samples


def _info(name: str, facts: Facts) -> Iterable[str]:
    """Yield a sample for each tunnel that has a label, with the text of each."""
    for tunnel, status in facts.tunnels:
        if status.labels:
            texts = "".join(f',{label}="{escaped(text)}"' for label, text in status.labels.items())
            yield f'{name}{{tunnel="{tunnel}"{texts}}} 1'


def _of_tunnels(value: Callable[[TunnelStatus], float | None]) -> _Samples:
    """Return the samples of a figure that each tunnel has, unless it is ``None``."""

    def samples(name: str, facts: Facts) -> Iterable[str]:
        found = []
        for tunnel, status in facts.tunnels:
            if (figure := value(status)) is not None:
                found.append(f'{name}{{tunnel="{tunnel}"}} {figure}')
        return found

    return samples


def _of_targets(value: Callable[[TargetState], int]) -> _Samples:
    """Return the samples of a figure that each of several targets of a tunnel has."""

    def samples(name: str, facts: Facts) -> Iterable[str]:
        for tunnel, status in facts.tunnels:
            for target in status.targets:
                yield f'{name}{{tunnel="{tunnel}",target="{escaped(target.target)}"}} {value(target)}'

    return samples


def _of_carriers(value: Callable[[CarrierStatus], float | None]) -> _Samples:
    def samples(name: str, facts: Facts) -> Iterable[str]:
        found = []
        for labels, carrier in facts.carriers:
            if (figure := value(carrier)) is not None:
                found.append(f"{name}{{{labels}}} {figure}")
        return found

    return samples


def _counted(label: str, value: Callable[[Metrics], Mapping[str, int]]) -> _Samples:
    """Return the samples of a mapping that each tunnel has."""

    def samples(name: str, facts: Facts) -> Iterable[str]:
        found = []
        for tunnel, metrics in facts.counters:
            if figures := value(metrics):
                found.append(filled(counts(name, tunnel, label, tuple(figures)), (*figures.values(),)))
        return found

    return samples


def _bytes(name: str, facts: Facts) -> Iterable[str]:
    for tunnel, it in facts.counters:
        received, sent = it.spliced_received, it.spliced_sent
        yield filled(byte_counts(name, tunnel), (it.received - received, received, it.sent - sent, sent))


def _hop_times(name: str, facts: Facts) -> Iterable[str]:
    for tunnel, metrics in facts.counters:
        for hop, times in metrics.hop_times.items():
            yield filled(histogram(name, f'tunnel="{tunnel}",hop="{hop}"', CONNECT_TIMES), times)


def _tunnel_histogram(bounds: tuple[float, ...], value: Callable[[Metrics], Histogram]) -> _Samples:
    def samples(name: str, facts: Facts) -> Iterable[str]:
        for tunnel, metrics in facts.counters:
            yield filled(histogram(name, f'tunnel="{tunnel}"', bounds), value(metrics))

    return samples


def _carrier_connects(name: str, facts: Facts) -> Iterable[str]:
    for labels, carrier in facts.carriers:
        yield filled(histogram(name, labels, CONNECT_TIMES), carrier.metrics)


def _accept_errors(name: str, facts: Facts) -> Iterable[str]:
    counts = dict.fromkeys(_EXHAUSTED, 0)
    for _, metrics in facts.counters:
        for error, count in metrics.accept_errors.items():
            counts[error] = counts.get(error, 0) + count
    return [f'{name}{{errno="{escaped(error)}"}} {count}' for error, count in counts.items()]


def _certificate_loads(name: str, facts: Facts) -> Iterable[str]:
    for tunnel, status in facts.tunnels:
        if (loads := status.certificate_loads) is not None:
            yield f'{name}{{tunnel="{tunnel}",result="success"}} {loads.succeeded}'
            yield f'{name}{{tunnel="{tunnel}",result="failure"}} {loads.failed}'


def _of_reloads(value: Callable[[ReloadStatus], float]) -> _Samples:
    """Return the sample of a figure of the reloads; none without a file, which cannot be reloaded."""
    return _single(lambda facts: None if facts.process.reloads is None else value(facts.process.reloads))


def _of_resumes(value: Callable[[ResumeFigures], int]) -> _Samples:
    """Return the sample of a figure of the resumable streams."""
    return _single(lambda facts: None if facts.process.resumes is None else value(facts.process.resumes))


def _reloads(name: str, facts: Facts) -> Iterable[str]:
    reloads = facts.process.reloads
    if reloads is None:
        return []
    return [f'{name}{{result="success"}} {reloads.succeeded}', f'{name}{{result="failure"}} {reloads.failed}']


def _workers(name: str, facts: Facts) -> Iterable[str]:
    states = [worker.state for worker in facts.process.workers]
    return [f'{name}{{state="{state}"}} {states.count(state)}' for state in _WORKER_STATES if states]


def _restarts(facts: Facts) -> float | None:
    workers = facts.process.workers
    return sum(worker.restarts for worker in workers) if workers else None


def _build(name: str, facts: Facts) -> Iterable[str]:
    return [f'{name}{{version="{escaped(facts.process.version)}",python="{platform.python_version()}"}} 1']


def _is_ready(tunnel: TunnelStatus) -> float | None:
    probe = tunnel.probe
    return None if probe is None else int(bool(probe.finished) and not probe.problem)


FAMILIES = (
    Family(
        "relay_connections_accepted_total",
        "counter",
        ("tunnel",),
        "Connections accepted.",
        _of_tunnels(lambda tunnel: None if tunnel.metrics is None else tunnel.metrics.accepted),
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
        ("tunnel", "hop"),
        "Time that each part of the connect took, of the connections that have ended.",
        _hop_times,
    ),
    Family(
        "relay_connection_seconds",
        "histogram",
        ("tunnel",),
        "Time from the acceptance to the end of a connection.",
        _tunnel_histogram(AGES, lambda metrics: metrics.ages),
    ),
    Family(
        "relay_denied_total",
        "counter",
        ("tunnel", "rule"),
        "Clients that were denied, by the rule; rules after the first hundred count as other.",
        _counted("rule", lambda metrics: metrics.denied),
    ),
    Family(
        "relay_bans_active",
        "gauge",
        ("tunnel", "limit"),
        "Bans that have not ended, by the limit.",
        _counted("limit", lambda metrics: metrics.bans),
    ),
    Family(
        "relay_throttled_seconds_total",
        "counter",
        ("tunnel",),
        "Time that connections have waited for bandwidth, each direction for itself.",
        _of_tunnels(lambda tunnel: None if tunnel.metrics is None else tunnel.metrics.throttled),
    ),
    Family(
        "relay_warm_streams",
        "gauge",
        ("tunnel",),
        "Streams that are open for the next clients.",
        _of_tunnels(lambda tunnel: tunnel.metrics.warm.ready if tunnel.metrics and tunnel.metrics.warm else None),
    ),
    Family(
        "relay_warm_connections_total",
        "counter",
        ("tunnel", "result"),
        "Clients that got a stream that was open already (hit), and those for which none was ready (miss).",
        _counted("result", lambda it: {"hit": it.warm.hits, "miss": it.warm.misses} if it.warm else {}),
    ),
    Family(
        "relay_warm_closed_total",
        "counter",
        ("tunnel", "reason"),
        "Such streams that closed without a client: the target ended them, or their time was over.",
        _counted("reason", lambda it: {"ended": it.warm.ended, "expired": it.warm.expired} if it.warm else {}),
    ),
    Family(
        "relay_tunnel_info",
        "gauge",
        ("tunnel", *LABELS),
        "The labels of the tunnel; always 1.",
        _info,
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
        "Whether the probes come through to the target.",
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
        "relay_target_up",
        "gauge",
        ("tunnel", "target"),
        "Whether one of several targets gets connections.",
        _of_targets(lambda target: int(target.state == "up")),
    ),
    Family(
        "relay_target_connections",
        "gauge",
        ("tunnel", "target"),
        "Open connections to one of several targets.",
        _of_targets(lambda target: target.active),
    ),
    Family(
        "relay_target_failures_total",
        "counter",
        ("tunnel", "target"),
        "Connects and probes of one of several targets that failed.",
        _of_targets(lambda target: target.failures),
    ),
    Family(
        "relay_carrier_up",
        "gauge",
        ("carrier", "kind", "number", "worker"),
        "Whether the SSH connection or I2P session is up.",
        _of_carriers(lambda carrier: int(carrier.state == "up")),
    ),
    Family(
        "relay_carrier_losses_total",
        "counter",
        ("carrier", "kind", "number", "worker"),
        "Connections of the carrier that were lost.",
        _of_carriers(lambda carrier: carrier.losses),
    ),
    Family(
        "relay_carrier_connect_seconds",
        "histogram",
        ("carrier", "kind", "number", "worker"),
        "Time to connect and log in, or to create the session, of the attempts that succeeded.",
        _carrier_connects,
    ),
    Family(
        "relay_carrier_streams",
        "gauge",
        ("carrier", "kind", "number", "worker"),
        "Open streams of the carrier.",
        _of_carriers(lambda carrier: carrier.streams),
    ),
    Family(
        "relay_carrier_rtt_seconds",
        "gauge",
        ("carrier", "kind", "number", "worker"),
        "Round trip of the last keepalive probe, where relay sends these itself.",
        _of_carriers(lambda carrier: carrier.rtt),
    ),
    Family(
        "relay_accept_errors_total",
        "counter",
        ("errno",),
        "Failures to accept a client, by the error of the system.",
        _accept_errors,
    ),
    Family(
        "relay_certificate_not_after_timestamp_seconds",
        "gauge",
        ("tunnel",),
        "Until when the certificate of the TLS listener is valid, seconds since 1970.",
        _of_tunnels(lambda tunnel: tunnel.certificate_end),
    ),
    Family(
        "relay_certificate_loads_total",
        "counter",
        ("tunnel", "result"),
        "Loads of the certificates of the TLS listener after their files have changed.",
        _certificate_loads,
    ),
    Family(
        "relay_resume_attempts_total",
        "counter",
        (),
        "Attempts to get another connection for a stream that has lost its own.",
        _of_resumes(lambda resumes: resumes.attempts),
    ),
    Family(
        "relay_resumes_total",
        "counter",
        (),
        "Streams that have gone on over another connection, each time.",
        _of_resumes(lambda resumes: resumes.resumes),
    ),
    Family(
        "relay_resume_losses_total",
        "counter",
        (),
        "Streams that ended because they could not go on.",
        _of_resumes(lambda resumes: resumes.losses),
    ),
    Family(
        "relay_resume_refused_total",
        "counter",
        (),
        "Attempts of clients to go on with a stream that is unknown here, or is not theirs.",
        _of_resumes(lambda resumes: resumes.refused),
    ),
    Family(
        "relay_resume_held_bytes",
        "gauge",
        (),
        "Bytes of resumable streams that are kept until the other end acknowledges them.",
        _of_resumes(lambda resumes: resumes.held),
    ),
    Family("relay_pipes_used", "gauge", (), "Open pipes for splicing.", _single(lambda facts: facts.pipes[0])),
    Family(
        "relay_pipes_free", "gauge", (), "Further pipes that relay may open.", _single(lambda facts: facts.pipes[1])
    ),
    Family(
        "relay_loop_lag_seconds",
        "histogram",
        (),
        "Time until the loop of a tunnel turns, measured once per scrape for each tunnel with connections.",
        lambda name, facts: [filled(histogram(name, "", LAGS), facts.lags)],
    ),
    Family("relay_config_reloads_total", "counter", ("result",), "Reloads of the file.", _reloads),
    Family(
        "relay_config_last_reload_successful",
        "gauge",
        (),
        "Whether the last reload was done; 1 before the first one.",
        _of_reloads(lambda reloads: int(reloads.was_successful)),
    ),
    Family(
        "relay_config_last_reload_success_timestamp_seconds",
        "gauge",
        (),
        "Time of the last reload that was done, or of the start, seconds since 1970.",
        _of_reloads(lambda reloads: reloads.last_success),
    ),
    Family("relay_workers", "gauge", ("state",), "Worker processes by their state.", _workers),
    Family("relay_worker_restarts_total", "counter", (), "Worker processes that have died.", _single(_restarts)),
    Family(
        "relay_draining",
        "gauge",
        (),
        "Whether relay is about to end.",
        _single(lambda facts: int(facts.process.draining)),
    ),
    Family("relay_build_info", "gauge", ("version", "python"), "The version of relay and of Python.", _build),
)
"""All metrics of relay, in the order of the page; those of the process follow."""
