"""Measurements over I2P: of relay, of the router's own tunnels, and of plain SAM."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ..goals import Goal, Metric, Row, Sample
from ..loads.tcp import GIB, Lab
from ..machine import UnavailableError

MIB = 2**20
SIZE = 12 * MIB  # bytes of a bulk transfer
BURST = 500
RECOVERY = 120.0  # seconds after which a way that is not back counts as lost
OURS = "i2p-relay"
BOTH = (OURS, "i2pd")
ALL = (*BOTH, "i2p-raw")
FLOOR = (*ALL, "i2p-c")  # with what any two programs beside the router cost


def bulk(lab: Lab, peer: str, kind: str, way: str) -> Sample:
    """One stream, and what it costs us beside what it costs the router."""
    world = lab.i2p(kind)
    ours, routers = world.cpu()
    done = world.load(way, world.place(peer), str(SIZE))
    sample = {"rate": done["bytes"] / done["seconds"]}
    if peer == OURS:
        ours, routers = (after - before for after, before in zip(world.cpu(), (ours, routers), strict=True))
        sample |= {"cpu": ours * GIB / SIZE, "share": ours / max(routers, 0.01)}
    return sample


def connections(lab: Lab, peer: str, workers: int) -> Sample:
    """New connections, each with one byte each way."""
    world = lab.i2p("one")
    done = world.load("connections", world.place(peer), str(lab.seconds), str(workers))
    return {"rate": done["rate"], "p50": done["p50"]}


def burst(lab: Lab, peer: str) -> Sample:
    """Callers at once."""
    world = lab.i2p("one")
    return world.load("burst", world.place(peer), str(BURST))


def ping(lab: Lab, peer: str) -> Sample:
    """64-byte round trips."""
    world = lab.i2p("one")
    return world.load("ping", world.place(peer), str(lab.seconds))


def recovery(lab: Lab, peer: str, side: str) -> Sample:
    """A router is killed and started again: the seconds from its first SAM answer to the next byte that is served.

    All peers are waited for at the same time, each round on a network of its own.
    """
    world = lab.i2p("two", use=side)
    if world.recovered and peer not in world.recovered:  # those were of the last round
        lab.close()
        world = lab.i2p("two", use=side)
    if not world.recovered:
        router = world.far if side == "server" else world.near
        router.kill()
        router.start()
        with ThreadPoolExecutor(len(BOTH)) as pool:
            waiting = {
                name: pool.submit(world.load, "until", world.place(name), str(RECOVERY), patience=RECOVERY + 60)
                for name in BOTH
            }
            world.recovered = {name: outcome.result() for name, outcome in waiting.items()}
    done = world.recovered.pop(peer)
    if not world.recovered:
        lab.close()
    if not done["served"]:
        raise UnavailableError(f"not served again within {RECOVERY:.0f} s")
    return {"seconds": done["seconds"]}


RATE = partial(Metric, "rate", "MiB/s", True, scale=1 / MIB)
P50 = partial(Metric, "p50", more=False)


def ours(of: str | None, factor: float) -> Goal:
    return Goal(of, factor, peer=OURS)


def _bulk(title: str, kind: str, way: str, peers: tuple[str, ...], *goals: Goal) -> Row:
    cost = Metric("share", "our CPU / the router's", False, (ours(None, 0.1),))
    own = Metric("cpu", "CPU s per GiB", False)
    return Row(title, "i2p", peers, (RATE(goals), own, cost), partial(bulk, kind=kind, way=way))


ROWS = {
    "i2p-one-up": _bulk("one router, up", "one", "up", FLOOR, ours("i2pd", 1.0), ours("i2p-raw", 1.05)),
    "i2p-one-down": _bulk("one router, down", "one", "down", FLOOR, ours("i2pd", 1.0), ours("i2p-raw", 1.05)),
    "i2p-connections": Row(
        "new connections, one at a time",
        "i2p",
        ALL,
        (
            Metric("rate", "connections/s", True, (ours("i2pd", 1.0), ours("i2p-raw", 2.0))),
            P50("first echo, p50 ms", goals=(ours("i2pd", 1.5),), scale=1e3),
        ),
        partial(connections, workers=1),
    ),
    "i2p-connections-16": Row(
        "new connections, 16 at a time",
        "i2p",
        ALL,
        (Metric("rate", "connections/s", True, (ours("i2pd", 1.0), ours("i2p-raw", 2.0))),),
        partial(connections, workers=16),
    ),
    "i2p-burst": Row(
        f"{BURST} callers at once",
        "i2p",
        BOTH,
        (Metric("served", "served", True, (ours("i2pd", 1.0),)), Metric("seconds", "s", False)),
        burst,
    ),
    "i2p-ping": Row(
        "64-byte round trips",
        "i2p",
        FLOOR,
        (
            P50("p50 µs", goals=(ours("i2pd", 1.0), ours("i2p-raw", 1.15), ours("i2p-c", 1.15)), scale=1e6),
            Metric("p99", "p99 µs", False, scale=1e6),
        ),
        ping,
    ),
    "i2p-two-up": _bulk("two routers, up", "two", "up", ALL, ours("i2pd", 1.0)),
    "i2p-two-down": _bulk("two routers, down", "two", "down", ALL, ours("i2pd", 1.0)),
    "i2p-hop-up": _bulk("three routers, one hop, up", "hop", "up", (OURS, "i2p-raw"), ours("i2p-raw", 0.98)),
    "i2p-hop-down": _bulk("three routers, one hop, down", "hop", "down", (OURS, "i2p-raw"), ours("i2p-raw", 0.98)),
    "i2p-server-back": Row(
        "the server's router restarts",
        "i2p",
        BOTH,
        (Metric("seconds", "s until served again", False, (ours(None, 50.0),)),),
        partial(recovery, side="server"),
    ),
    "i2p-client-back": Row(
        "the client's router restarts",
        "i2p",
        BOTH,
        (Metric("seconds", "s until served again", False, (ours(None, 25.0),)),),
        partial(recovery, side="client"),
    ),
}
