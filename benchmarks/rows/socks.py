"""Measurements of proxies whose clients name their targets: relay, microsocks, dante and ``ssh -D``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..goals import CPU, CPU_BULK, GBIT, RATE, Goal, Metric, Row, Sample
from ..jobs import DIRECT, Target
from ..loads.tcp import GIB, Lab, Relay
from ..machine import Process, compiled, free_port, run

SOURCE = Path(__file__).parents[1] / "c" / "socks.c"
CLIENTS = 32
CROWD = 2000  # half-open connections
PATIENCE = 60.0  # seconds that a load may take beyond its own time
OURS = "socks-relay"
ALONE = "socks-relay-alone"  # the same without the crowd
OTHERS = ("microsocks", "dante", "ssh-dynamic")
ALL = (OURS, *OTHERS, DIRECT)


@contextmanager
def led(lab: Lab, peer: str) -> Iterator[tuple[Relay, Callable[..., dict[str, float]]]]:
    """One proxy, and what loads it: a call of socks.c with a server of its own."""
    words = [compiled(SOURCE, lab.directory)]
    port = free_port()
    with ExitStack() as stack:
        stack.enter_context(Process([*words, "serve", str(port)], port, lab.directory / f"socks-{port}.log"))
        target = Target(port)
        if peer == "ssh-dynamic":
            target = replace(target, server=stack.enter_context(lab.ssh_server()))
        relay = stack.enter_context(lab.relay(peer, target))

        def load(kind: str, seconds: float, *more: int) -> dict[str, float]:
            proxy = 0 if peer == DIRECT else relay.port
            said = run([*words, kind, *map(str, (proxy, port, seconds, *more))], seconds + PATIENCE)
            numbers: dict[str, float] = json.loads(said)
            return numbers

        load("connections", 0.1, 1)  # what is made once is there before the load begins
        relay.begin()
        yield relay, load


def bulk(lab: Lab, peer: str) -> Sample:
    """One stream to the target."""
    with led(lab, peer) as (relay, load):
        done = load("bulk", lab.seconds)
        return {"rate": done["bytes"] * 8 / done["seconds"]} | relay.cost(done["bytes"] / GIB)


def connections(lab: Lab, peer: str, clients: int) -> Sample:
    """New connections, each with 64 bytes and an answer."""
    with led(lab, peer) as (relay, load):
        done = load("connections", lab.seconds, clients)
        return {"rate": done["count"] / done["seconds"], "p50": done["p50"]} | relay.cost(done["count"])


def crowded(lab: Lab, peer: str) -> Sample:
    """The same beside half-open connections, which say one byte; the oldest of them are replaced all the time."""
    with led(lab, peer) as (relay, load):
        done = load("connections" if peer == ALONE else "crowded", lab.seconds, CLIENTS, CROWD)
        return {"rate": done["count"] / done["seconds"], "p50": done["p50"]} | relay.cost(max(1, done["count"]))


GOALS = tuple(Goal(other, 1.0, peer=OURS) for other in OTHERS)
CROWDED = (Goal(ALONE, 0.5, peer=OURS), Goal("microsocks", 1.0, peer=OURS), Goal("dante", 1.0, peer=OURS))
P50 = Metric("p50", "p50 µs", False)


def _connections(title: str, clients: int) -> Row:
    metrics = RATE(title="connections/s", goals=GOALS), P50, CPU(title="CPU µs per connection")
    return Row(title, "socks", ALL, metrics, partial(connections, clients=clients))


ROWS = {
    "socks-bulk": Row("one stream", "socks", ALL, (GBIT(GOALS), CPU_BULK()), bulk),
    "socks-connections": _connections(f"new connections, {CLIENTS} at a time", CLIENTS),
    "socks-crowded": Row(
        f"new connections, {CLIENTS} at a time, beside {CROWD:,} half-open ones, 1,000 a second of them new",
        "socks",
        (OURS, ALONE, "microsocks", "dante"),
        (RATE(title="connections/s", goals=CROWDED), P50, CPU(title="CPU µs per connection")),
        crowded,
    ),
    "socks-one-by-one": _connections("new connections, one at a time", 1),
}
