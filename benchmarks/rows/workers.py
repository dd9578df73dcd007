"""Measurements of relays with one worker and with two.

On a machine with more than two cores a relay has as many of them as workers, and the load and the target have the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

from ..goals import CPU, CPU_BULK, GBIT, RATE, Goal, Metric, Row, Sample
from ..jobs import Target
from ..loads.tcp import GIB, Lab, Relay, wrk
from ..machine import pinned

__all__ = ["ROWS", "TABLES"]

STREAMS = 16
CONNECTIONS = 64  # of wrk, at a time
PEERS = tuple(f"{name}-{count}" for count in (1, 2) for name in ("workers", "haproxy", "nginx"))


def requests(lab: Lab, peer: str, keep: bool) -> Sample:
    """Requests of wrk to nginx, which answers 50 bytes."""
    with _beside(lab, peer), lab.web_server() as target, _relay(lab, peer, target) as relay:
        wrk(relay.port, 1, keep=keep, connections=CONNECTIONS)
        relay.begin()
        done = wrk(relay.port, lab.seconds, keep=keep, connections=CONNECTIONS)
        return {"rate": done["requests"] / done["seconds"]} | relay.cost(done["requests"])


def bulk(lab: Lab, peer: str) -> Sample:
    """Streams that carry as much as they can, and 64-byte round trips beside them."""
    with (
        _beside(lab, peer),
        lab.crowd_server() as target,
        _relay(lab, peer, target) as relay,
        lab.crowd("drain", relay.port, STREAMS) as crowd,
    ):
        relay.begin()
        done = lab.ping(relay.port)
        moved = crowd.end()
        cost = relay.cost(moved["bytes"] / GIB)
        return {"rate": moved["bytes"] * 8 / moved["seconds"], "p50": done["p50"], "p99": done["p99"]} | cost


def _cores(lab: Lab, peer: str) -> tuple[list[int], list[int]]:
    """The cores of a relay, and those of the load and its target; all for both on a machine with two."""
    count = int(peer[-1])
    return (lab.cores[:count], lab.cores[count:]) if len(lab.cores) > 2 else (lab.cores, lab.cores)


def _beside(lab: Lab, peer: str) -> AbstractContextManager[None]:
    return pinned(*_cores(lab, peer)[1])


@contextmanager
def _relay(lab: Lab, peer: str, target: Target) -> Iterator[Relay]:
    with ExitStack() as stack:
        with pinned(*_cores(lab, peer)[0]):
            relay = stack.enter_context(lab.relay(peer, target))
        yield relay


def _goals(*, more: bool) -> tuple[Goal, ...]:
    """As good as HAProxy with as many threads; twice as fast with two workers if the load leaves them the cores."""
    goals = tuple(Goal(f"haproxy-{count}", 1.0, peer=f"workers-{count}") for count in (1, 2))
    has_room = len(os.sched_getaffinity(0)) > 3
    return (*goals, Goal("workers-1", 1.8, peer="workers-2")) if more and has_room else goals


def _rate(title: str, unit: str, *, keep: bool) -> Row:
    metrics = RATE(title=f"{unit}s/s", goals=_goals(more=True)), CPU(title=f"CPU µs per {unit}")
    return Row(title, "workers", PEERS, metrics, partial(requests, keep=keep))


TABLES = {"workers": "Workers: one and two"}
ROWS = {
    "workers-requests": _rate("keep-alive requests", "request", keep=True),
    "workers-connections": _rate("new connections", "connection", keep=False),
    "workers-bulk": Row(
        f"bulk, {STREAMS} streams",
        "workers",
        PEERS,
        (
            GBIT(_goals(more=True)),
            CPU_BULK(),
            Metric("p50", "p50 µs of a round trip beside them", False),
            Metric("p99", "p99 µs of a round trip beside them", False, _goals(more=False)),
        ),
        bulk,
    ),
}
