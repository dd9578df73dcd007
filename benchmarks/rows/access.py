"""Measurements of access rules and limits of clients: what they cost, how exact a bandwidth is, and how fair."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..goals import CPU, CPU_BULK, GBIT, RATE, Goal, Metric, Row, Sample
from ..loads.limits import cost_of_tables
from ..loads.tcp import GIB, Lab, iperf3, iperf3_shares, wrk
from ..peers.access import SHARED

LONG = 10  # seconds of load, over which a bandwidth is to be exact


def connections(lab: Lab, peer: str) -> Sample:
    """Requests of wrk to nginx with a connection for each."""
    with lab.web_server() as target, lab.relay(peer, target) as relay:
        relay.begin()
        done = wrk(relay.port, lab.seconds, keep=False)
        return {"rate": done["requests"] / done["seconds"]} | relay.cost(done["requests"])


def tables(_lab: Lab, _peer: str) -> Sample:
    """A rate for each address, with as many addresses as its table holds; without sockets."""
    return cost_of_tables()


def bulk(lab: Lab, peer: str) -> Sample:
    """One stream of iperf3."""
    with lab.iperf3_server() as target, lab.relay(peer, target) as relay:
        relay.begin()
        size, seconds = iperf3(relay.port, 1, lab.seconds)
        return {"rate": size * 8 / seconds} | relay.cost(size / GIB)


def shared(lab: Lab, peer: str, streams: int) -> Sample:
    """Streams of iperf3 that share a bandwidth, for as long as that is to be exact."""
    with lab.iperf3_server() as target, lab.relay(peer, target) as relay:
        relay.begin()
        sizes, seconds = iperf3_shares(relay.port, streams, LONG)
        deviation = abs(sum(sizes) / seconds / SHARED - 1)
        return {"deviation": deviation, "share": min(sizes) * len(sizes) / sum(sizes)} | relay.cost(sum(sizes) / GIB)


def _shared(streams: int) -> Row:
    measure: Callable[[Lab, str], Sample] = partial(shared, streams=streams)
    return Row(
        f"a shared bandwidth over {LONG} s, {streams} stream{'s' if streams > 1 else ''}",
        "access",
        ("relay-shared",),
        (
            Metric("deviation", "deviation from it, %", False, (Goal(None, 5.0, peer="relay-shared"),), scale=100),
            Metric("share", "least part of an equal share", True, (Goal(None, 0.5, peer="relay-shared"),)),
            CPU_BULK(),
        ),
        measure,
    )


TABLES = {"access": "Access rules and limits of clients"}
ROWS = {
    "access-connections": Row(
        "new connections, five rules and five limits",
        "access",
        ("relay", "relay-rules"),
        (
            RATE(title="connections/s", goals=(Goal("relay", 0.95, peer="relay-rules"),)),
            CPU(title="CPU µs per connection"),
        ),
        connections,
    ),
    "access-tables": Row(
        "the table of a limit, 100,000 addresses",
        "access",
        ("relay",),
        (
            *(
                Metric(key, f"{title}: CPU µs per connection", False, (Goal(None, 1.0),), scale=1e6)
                for key, title in (
                    ("one", "one address"),
                    ("new", "new ones"),
                    ("known", "known ones"),
                    ("table_new", "new ones, the table alone"),
                    ("table_known", "known ones, the table alone"),
                )
            ),
            Metric("collection", "garbage collection of the table: CPU ms", False, scale=1e3),
        ),
        tables,
    ),
    "access-bulk": Row(
        "bulk, 1 stream, with a bandwidth of 10 GB/s",
        "access",
        ("relay", "relay-paced", "relay-metered", "c", "c-paced"),
        (GBIT(), CPU_BULK((Goal("relay", 1.05, peer="relay-paced"),))),
        bulk,
    ),
    "access-shared-1": _shared(1),
    "access-shared-100": _shared(100),
}
