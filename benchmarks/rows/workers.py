"""Measurements of relays with one worker and with two.

On a machine with more than two cores a relay has as many of them as workers, and the load and the target have the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from ..goals import CPU, CPU_BULK, GBIT, LEAST_CONNECTIONS, RATE, Goal, Metric, Row, Sample
from ..jobs import Target
from ..loads.killed import EACH, fates
from ..loads.tcp import GIB, Lab, Relay, wrk
from ..machine import Process, compiled, free_port, pinned

SOURCES = Path(__file__).parents[1] / "c"
STREAMS = 16
CONNECTIONS = 64  # of wrk, at a time
KILLED = "workers-2"
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


def killed(lab: Lab, peer: str, spared: int) -> Sample:
    """New connections while a worker is killed again and again: what becomes of each client."""
    port = free_port()
    serve = [compiled(SOURCES / "socks.c", lab.directory), "serve", str(port)]
    lost = compiled(SOURCES / "lost.c", lab.directory)
    with Process(serve, port, lab.directory / f"socks-{port}.log"), lab.relay(peer, Target(port)) as relay:
        assert relay.process is not None
        done = fates(lost, relay.process, lab.seconds, CONNECTIONS, spared=spared)
    return {
        "rate": done.served / done.seconds,
        "kills": done.kills,
        "accepted": done.accepted,
        "lost": done.lost.total(),
        "refused": done.lost["refused"] + done.unexplained["refused"],
        "unexplained": done.unexplained.total(),
        "longest": done.longest,
    }


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


def _goals(*, more: bool, factor: float = 1.0) -> tuple[Goal, ...]:
    """As good as HAProxy with as many threads; twice as fast with two workers if the load leaves them the cores."""
    goals = tuple(Goal(f"haproxy-{count}", factor, peer=f"workers-{count}") for count in (1, 2))
    has_room = len(os.sched_getaffinity(0)) > 3
    return (*goals, Goal("workers-1", 1.8, peer="workers-2")) if more and has_room else goals


def _rate(title: str, unit: str, *, keep: bool) -> Row:
    goals = _goals(more=True, factor=1.0 if keep else LEAST_CONNECTIONS)
    metrics = RATE(title=f"{unit}s/s", goals=goals), CPU(title=f"CPU µs per {unit}")
    return Row(title, "workers", PEERS, metrics, partial(requests, keep=keep))


def _killed(title: str, spared: int) -> Row:
    none = (Goal(None, 0.0, peer=KILLED),)
    metrics = (
        RATE(title="connections/s"),
        Metric("kills", "kills", True),
        Metric("accepted", "clients that killed workers had accepted", False),
        Metric("lost", "of them, lost", False),
        Metric("refused", "connects refused", False, none),
        Metric("unexplained", "others lost", False, none),
        Metric("longest", "longest wait, s", False),
    )
    title = f"new connections while {title.format(EACH)}"
    return Row(title, "workers", (KILLED,), metrics, partial(killed, spared=spared))


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
    "workers-killed": _killed("one of two workers that serve is killed each {} s", 1),
    "workers-killed-all": _killed("a worker is killed each {} s, also the last one", 0),
}
