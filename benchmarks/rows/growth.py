"""Measurements of how cost grows with idle connections, busy streams, tunnels of a file, streams over SSH."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit

from ..goals import CPU, CPU_BULK, GBIT, RATE, Goal, Metric, Row, Sample
from ..jobs import DIRECT, Target
from ..loads.tcp import GIB, Lab, Relay, wrk
from ..machine import LOOPBACK, MeasurementError, Process, UnavailableError, free_port, listeners_at
from ..peers.tunnels import FILES, host_of
from .ssh import LIKE_SSH, carried

SPARE = 2000  # descriptors of a relay beside those of connections: HAProxy counts those of its pipes
ENOUGH = 0.9  # of the connections that a row is about, where the system does not allow all
PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
WARM = 1  # seconds of new connections before those that are counted: an interpreter gets faster
SETTLED = 0.5  # seconds until what was begun is over
PATIENCE = 120.0  # seconds for all tunnels to listen, or for a reload
ANSWERS = 10.0  # seconds for one answer


def allowed(size: int) -> int:
    """The number of connections that this machine allows, if that is about ``size``.

    :raises UnavailableError: if it allows less.
    """
    limit, needed = getrlimit(RLIMIT_NOFILE)[0], 2 * size + SPARE
    low, high = map(int, PORTS.read_text().split())
    if limit < ENOUGH * needed:
        raise UnavailableError(f"{size:,} connections need a hard limit of {needed:,} descriptors (ulimit -Hn)")
    if high - low < size:
        raise UnavailableError(f"{size:,} connections need as many local ports (sysctl net.ipv4.ip_local_port_range)")
    return min(size, (limit - SPARE) // 2)


def idle(lab: Lab, peer: str, size: int) -> Sample:
    """Connections that have carried an answer and do nothing, and new ones beside them and without them."""
    held = allowed(size)
    with lab.web_server(held + 100) as target:
        with lab.relay(peer, target, held + 100) as relay:
            alone = _new_connections(lab, relay)
        sample = _held(lab, peer, target, held)
        return sample | {"share": sample["rate"] * alone["seconds"] / alone["requests"]}


def _held(lab: Lab, peer: str, target: Target, held: int) -> Sample:
    """The same without the comparison, in a process of its own."""
    with lab.relay(peer, target, held + 100) as relay:
        sample: Sample = {}
        empty = relay.process.memory() if relay.process else 0
        with lab.crowd("hold", relay.port, held) as crowd:
            if relay.process:
                memory = relay.process.memory()
                sample |= {"held": held, "memory": memory}
                if held >= 900:  # else it is the memory of what was made once
                    sample["each"] = (memory - empty) / held
                time.sleep(SETTLED)
                relay.begin()
                time.sleep(lab.seconds)
                sample["idle"] = relay.cost(lab.seconds)["cpu"]
            beside = _new_connections(lab, relay)
            sample |= {"rate": beside["requests"] / beside["seconds"]} | relay.cost(beside["requests"])
            crowd.end()
        return sample


def _new_connections(lab: Lab, relay: Relay) -> dict[str, float]:
    wrk(relay.port, WARM, keep=False)
    relay.begin()
    return wrk(relay.port, lab.seconds, keep=False)


def busy(lab: Lab, peer: str, size: int) -> Sample:
    """64-byte round trips beside streams that carry as much as they can."""
    with (
        lab.crowd_server() as target,
        lab.relay(peer, target) as relay,
        lab.crowd("drain", relay.port, size) as crowd,
    ):
        relay.begin()
        done = lab.ping(relay.port)
        moved = crowd.end()
        sample = {"p50": done["p50"], "p99": done["p99"], "rate": moved["bytes"] * 8 / moved["seconds"]}
        return sample | relay.cost(moved["bytes"] / GIB)


def streams(lab: Lab, peer: str, size: int) -> Sample:
    """Streams on one SSH connection: idle while a new one is timed, then all of them busy."""
    with lab.crowd_server() as target, carried(lab, peer, target) as relay:
        assert relay.process is not None
        with lab.crowd("hold", relay.port, 1) as crowd:  # the connection is up
            crowd.end()
        with lab.crowd("hold", relay.port, size) as crowd:
            memory = relay.process.memory()
            opened = lab.first_bytes(relay.port, "speak")
            crowd.end()
        time.sleep(SETTLED)
        with lab.crowd("drain", relay.port, size) as crowd:
            relay.begin()
            time.sleep(lab.seconds)
            moved = crowd.end()
        return {
            "rate": moved["bytes"] * 8 / moved["seconds"],
            "p50": opened["p50"],
            "memory": memory,
        } | relay.cost(moved["bytes"] / GIB)


def tunnels(lab: Lab, peer: str, size: int) -> Sample:
    """A file of tunnels: until all listen, without clients, and read again with another target of one of them."""
    file, port, changed = FILES[peer], free_port(), size // 2
    with (
        tempfile.TemporaryDirectory(dir=lab.directory) as folder,
        _says(b"1") as first,
        _says(b"2") as second,
    ):
        path, targets = Path(folder, file.name), [first] * size
        path.touch(0o600)
        path.write_text(file.text(port, targets))
        begin = time.monotonic()
        with Process(file.command(path), port, Path(folder, "log")) as process:
            _wait_until(lambda: listeners_at(port) >= size)
            ready = time.monotonic() - begin
            starting = process.cpu()
            time.sleep(SETTLED)
            before = process.cpu()
            time.sleep(lab.seconds)
            idle = (process.cpu() - before) / lab.seconds
            sample = {"ready": ready, "starting": starting, "memory": process.memory(), "idle": idle}
            _wait_until(lambda: _hears(host_of(changed), port) == b"1")
            targets[changed] = second
            path.write_text(file.text(port, targets))
            before, begin = process.cpu(), time.monotonic()
            process.signal(file.reload)
            _wait_until(lambda: _hears(host_of(changed), port) == b"2")
            sample["reload"] = time.monotonic() - begin
            time.sleep(SETTLED)
            return sample | {"reloading": process.cpu() - before}


@contextmanager
def _says(word: bytes) -> Iterator[int]:
    """A server that sends one word to each client; gives its port."""

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):  # it is shut down at the end
            while True:
                with listening.accept()[0] as client:
                    client.sendall(word)

    with socket.create_server((LOOPBACK, 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def _hears(host: str, port: int) -> bytes:
    """Return what the server behind a tunnel says; nothing while the program reads its file."""
    try:
        with socket.create_connection((host, port), ANSWERS) as client:
            return client.recv(1)
    except OSError:
        return b""


def _wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            raise MeasurementError(f"not there after {PATIENCE:.0f} s")
        time.sleep(0.01)


def _rows(
    table: str,
    title: str,
    sizes: Sequence[int],
    peers: tuple[str, ...],
    metrics: tuple[Metric, ...],
    measure: Callable[..., Sample],
) -> dict[str, Row]:
    """A row for each size, all with the same figures."""
    return {
        f"{table}-{size}": Row(
            title.format(f"{size:,}") if size > 1 else title.format(1).removesuffix("s"),
            table,
            peers,
            metrics,
            partial(measure, size=size),
            size,
        )
        for size in sizes
    }


MEMORY = Metric("memory", "MiB of memory", False, scale=1 / 2**20)

TABLES = {
    "growth-idle": "How cost grows: idle connections",
    "growth-busy": "How cost grows: busy streams",
    "growth-tunnels": "How cost grows: tunnels of one file",
    "growth-streams": "How cost grows: streams on one SSH connection",
}
ROWS = {
    **_rows(
        "growth-idle",
        "{} idle connections",
        (10, 1000, 10_000, 60_000),
        ("relay", "haproxy", "nginx", "c", DIRECT),
        (
            Metric("held", "connections", True),
            MEMORY,
            Metric("each", "KiB per connection", False, (Goal(None, 2.0),), scale=1 / 1024),
            Metric("idle", "idle, CPU ms per second", False, (Goal(None, 1.0),), scale=1e3),
            RATE(title="new connections/s"),
            Metric(
                "share", "new connections/s, % of those without the idle ones", True, (Goal(None, 95.0),), scale=100
            ),
            CPU(title="CPU µs per new connection"),
        ),
        idle,
    ),
    **_rows(
        "growth-busy",
        "beside {} busy streams",
        (1, 100, 1000),
        ("relay", "haproxy", "haproxy-tuned", "nginx", "c"),
        (
            Metric("p50", "p50 µs of a round trip", False),
            Metric("p99", "p99 µs of a round trip", False, (Goal("haproxy", 1.1),)),
            GBIT(),
            CPU_BULK(),
        ),
        busy,
    ),
    **_rows(
        "growth-tunnels",
        "{} tunnels",
        (1, 100, 1000, 5000),
        ("relay", "haproxy", "nginx"),
        (
            Metric("ready", "seconds until all listen", False),
            Metric("starting", "CPU seconds until then", False),
            MEMORY,
            Metric("idle", "idle, CPU ms per second", False, (Goal(None, 0.0),), scale=1e3),
            Metric("reload", "seconds of a reload, one changed", False),
            Metric("reloading", "CPU seconds of a reload", False),
        ),
        tunnels,
    ),
    **_rows(
        "growth-streams",
        "{} streams",
        (1, 10, 100, 1000),
        LIKE_SSH,
        (
            GBIT((Goal("ssh", 1.0, peer="ssh-paramiko"), Goal("ssh", 0.95, peer="ssh-openssh"))),
            CPU_BULK(),
            Metric("p50", "first byte of one more, p50 µs", False),
            MEMORY,
        ),
        streams,
    ),
}
