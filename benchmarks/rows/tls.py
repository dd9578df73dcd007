"""Measurements of TLS: to a target that speaks it, and from clients that do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..goals import CPU, CPU_BULK, GBIT, RATE, Goal, Metric, Row, Sample
from ..jobs import Target
from ..loads.tcp import GIB, Lab, Relay, downloads, wrk
from ..machine import Process, compiled, free_port, run
from ..peers.tcp import NEWER

SOURCES = Path(__file__).parents[1] / "c"
CLIENTS = 32
HYBRID = "0x11ec"  # X25519MLKEM768, in the registry of TLS; nginx has the names that its OpenSSL had when it was built
CROWD = 2000  # half-open connections
PATIENCE = 60.0  # seconds that a load may take beyond its own time
OURS = "tls-relay"
ALONE = "tls-relay-alone"  # the same without the crowd
LISTENERS = (OURS, "tls-haproxy", "tls-nginx", "tls-stunnel", "tls-ghostunnel")


def to_target(lab: Lab, peer: str) -> Sample:
    """A large file from nginx over TLS, fetched in the clear through the relay."""
    with lab.tls_server() as (target, _), lab.relay(peer, target) as relay:
        relay.begin()
        size, seconds = downloads(relay.port, lab.seconds)
        return {"rate": size * 8 / seconds} | relay.cost(size / GIB)


def handshakes_with_target(lab: Lab, peer: str, tickets: bool, openssl: tuple[int, int] | None = None) -> Sample:
    """Requests with a connection for each, and so a handshake with the target."""
    with lab.tls_server(tickets, openssl) as (target, log), lab.relay(peer, target) as relay:
        relay.begin()
        done = wrk(relay.port, lab.seconds, keep=False)
        sample = {"rate": done["requests"] / done["seconds"]} | relay.cost(done["requests"])
        resumed, groups = zip(*(line.split() for line in log.read_text().splitlines()), strict=True)
        shares = {"resumed": resumed.count("r") / len(resumed)}
        return sample | shares | {"hybrid": groups.count(HYBRID) / len(groups)}


def ping_target(lab: Lab, peer: str) -> Sample:
    """64-byte round trips to a server behind HAProxy, which ends TLS; all of them share a core."""
    with lab.one_core(), lab.echo_server() as echo, lab.over_tls(echo) as target, lab.relay(peer, target) as relay:
        relay.begin()
        done = lab.ping(relay.port)
        return {"p50": done["p50"], "p99": done["p99"]} | relay.cost(done["count"])


@contextmanager
def listening(lab: Lab, peer: str, server: str) -> Iterator[tuple[Relay, Callable[..., dict[str, float]]]]:
    """One relay that ends TLS, and what loads it: a call of tls.c.

    :param server: the program whose ``serve`` is the target.
    """
    port = free_port()
    words = [compiled(SOURCES / f"{server}.c", lab.directory), "serve", str(port)]
    client = compiled(SOURCES / "tls.c", lab.directory, "ssl", "crypto")
    with Process(words, port, lab.directory / f"{server}-{port}.log"), lab.relay(peer, Target(port)) as relay:

        def load(kind: str, *more: int) -> dict[str, float]:
            said = run([client, kind, *map(str, (relay.port, lab.seconds, *more))], lab.seconds + PATIENCE)
            numbers: dict[str, float] = json.loads(said)
            return numbers

        yield relay, load


def handshakes(lab: Lab, peer: str, kind: str) -> Sample:
    """New clients, each with a handshake, 64 bytes and an answer."""
    with listening(lab, peer, "socks") as (relay, load):
        relay.begin()
        done = load("full" if peer == ALONE else kind, CLIENTS, CROWD)
        sample = {"rate": done["count"] / done["seconds"], "p50": done["p50"], "resumed": done["resumed"]}
        return sample | relay.cost(max(1, done["count"]))


def bulk(lab: Lab, peer: str) -> Sample:
    """Zeros to a client."""
    with listening(lab, peer, "crowd") as (relay, load):
        relay.begin()
        done = load("drain")
        return {"rate": done["bytes"] * 8 / done["seconds"]} | relay.cost(done["bytes"] / GIB)


def ping(lab: Lab, peer: str) -> Sample:
    """64-byte round trips of a client; all of them share a core."""
    with lab.one_core(), listening(lab, peer, "crowd") as (relay, load):
        relay.begin()
        done = load("ping")
        return {"p50": done["p50"], "p99": done["p99"]} | relay.cost(done["count"])


BULK = (Goal("haproxy", 1.15), Goal("stunnel", 1.0))
CONNECTIONS = (Goal("haproxy", 0.9), Goal("stunnel", 1.0))
ROUND_TRIPS = (
    Metric("p50", "p50 µs", False, (Goal("haproxy", 1.2),)),
    Metric("p99", "p99 µs", False),
    CPU(title="CPU µs per round trip"),
)
RESUMED = Metric("resumed", "sessions resumed, %", True, scale=100)
HANDSHAKES = (
    RATE(title="connections/s", goals=CONNECTIONS),
    CPU(title="CPU µs per connection"),
    RESUMED,
)
HANDSHAKES_35 = (RATE(title="connections/s"), *HANDSHAKES[1:])
NEWER_TARGETS = ("relay", "relay-3.5", "relay-3.5-x25519", "haproxy-3.5")
TARGETS = ("relay", "relay-limits", "haproxy", "stunnel")
OF_HAPROXY = partial(Goal, "tls-haproxy", peer=OURS)


def _handshakes(title: str, kind: str, goals: tuple[Goal, ...], peers: tuple[str, ...] = LISTENERS) -> Row:
    metrics = (
        RATE(title="connections/s", goals=goals),
        Metric("p50", "p50 ms", False, scale=1e-3),
        CPU(title="CPU µs per connection", goals=(OF_HAPROXY(1.1),)),
        RESUMED,
    )
    return Row(title, "tls-listener", peers, metrics, partial(handshakes, kind=kind))


TABLES = {"tls": "TLS to the target", "tls-listener": "TLS from the clients"}
ROWS = {
    "tls-bulk": Row("TLS, bulk", "tls", TARGETS, (GBIT(BULK), CPU_BULK()), to_target),
    "tls-handshakes": Row(
        "TLS, new connections", "tls", TARGETS, HANDSHAKES, partial(handshakes_with_target, tickets=True)
    ),
    "tls-full": Row(
        "TLS, new connections, target without sessions",
        "tls",
        TARGETS,
        HANDSHAKES,
        partial(handshakes_with_target, tickets=False),
    ),
    **{
        f"tls-groups-{kind}": Row(
            f"TLS, new connections, target with OpenSSL 3.5, {title}",
            "tls",
            NEWER_TARGETS,
            (*HANDSHAKES_35, Metric("hybrid", "keys by X25519MLKEM768, %", True, scale=100)),
            partial(handshakes_with_target, tickets=tickets, openssl=NEWER),
        )
        for kind, title, tickets in (("resumed", "sessions resumed", True), ("full", "no sessions", False))
    },
    "tls-ping-pong": Row("TLS, 64-byte round trips on one core", "tls", TARGETS, ROUND_TRIPS, ping_target),
    "tls-listener-full": _handshakes("new connections, full handshakes", "full", (OF_HAPROXY(0.9),)),
    "tls-listener-resumed": _handshakes("new connections, resumed sessions", "resumed", (OF_HAPROXY(0.9),)),
    "tls-listener-crowded": _handshakes(
        f"new connections beside {CROWD:,} half-open ones, 1,000 a second of them new",
        "crowded",
        (OF_HAPROXY(0.9), Goal(ALONE, 0.5, peer=OURS)),
        (OURS, ALONE, *LISTENERS[1:]),
    ),
    "tls-listener-bulk": Row(
        "bulk, 1 stream", "tls-listener", LISTENERS, (GBIT((OF_HAPROXY(1.15),)), CPU_BULK()), bulk
    ),
    "tls-listener-ping-pong": Row(
        "64-byte round trips on one core",
        "tls-listener",
        LISTENERS,
        (Metric("p50", "p50 µs", False, (OF_HAPROXY(1.2),)), *ROUND_TRIPS[1:]),
        ping,
    ),
}
