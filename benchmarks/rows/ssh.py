"""Measurements over SSH: of relay over both backends, of ``ssh -L``, and of Python packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from ..goals import CPU, CPU_BULK, GBIT, RATE, Goal, Metric, Row, Sample
from ..jobs import Target
from ..loads.tcp import GIB, Lab, Relay, iperf3, warm_iperf3, warm_wrk, wrk
from ..machine import free_port

CONNECTIONS = 16
LIKE_SSH = ("ssh-paramiko", "ssh-openssh", "ssh")
OPENING = (*LIKE_SSH, "ssh-c")
ALL = ("ssh-paramiko", "ssh-openssh", "ssh", "ssh-gcm", "ssh-c", "asyncssh", "sshtunnel")
LONG = ("ssh-paramiko", "ssh-openssh", "ssh", "ssh-gcm", "asyncssh")


@contextmanager
def carried(lab: Lab, peer: str, target: Target, *, far: bool = False) -> Iterator[Relay]:
    """One peer in front of ``target``, with an SSH server between them."""
    with lab.ssh_server(far=far) as server, lab.relay(peer, replace(target, server=server)) as relay:
        yield relay


def bulk(lab: Lab, peer: str, down: bool, far: bool = False) -> Sample:
    """One stream of iperf3 for as long as the lab says, on a connection that is up."""
    target = Target(free_port())
    with carried(lab, peer, target, far=far) as relay:
        with lab.iperf3_server(target.port):
            warm_iperf3(relay.port)
        with lab.iperf3_server(target.port):
            relay.begin()
            size, seconds = iperf3(relay.port, 1, lab.seconds, down=down)
        return {"rate": size * 8 / seconds} | relay.cost(size / GIB)


def requests(lab: Lab, peer: str, keep: bool) -> Sample:
    """Answers of 50 bytes from nginx to wrk; connections kept, or one for each request."""
    with lab.web_server() as target, carried(lab, peer, target) as relay:
        warm_wrk(relay.port)
        relay.begin()
        done = wrk(relay.port, lab.seconds, keep=keep, connections=CONNECTIONS)
        return {"rate": done["requests"] / done["seconds"]} | relay.cost(done["requests"])


def first_byte(lab: Lab, peer: str, server: str, client: str) -> Sample:
    """The time of a new stream to its first byte, one after another."""
    with lab.opening_server(server) as target, carried(lab, peer, target) as relay:
        done = lab.first_bytes(relay.port, client)
        return {"p50": done["p50"], "p99": done["p99"]}


def busy(lab: Lab, peer: str) -> Sample:
    """64-byte round trips, all on one core, with a busy thread on the other where the peer has one."""
    with lab.one_core(), lab.echo_server() as target, carried(lab, peer, target) as relay:
        done = lab.ping(relay.port)
        return {"rate": done["count"] / done["seconds"], "p50": done["p50"], "p99": done["p99"]}


def paramiko(of: str, factor: float) -> Goal:
    return Goal(of, factor, peer="ssh-paramiko")


def openssh(of: str, factor: float) -> Goal:
    return Goal(of, factor, peer="ssh-openssh")


BULK = (
    GBIT((paramiko("asyncssh", 1.5), paramiko("sshtunnel", 2.5), openssh("ssh-gcm", 0.95), openssh("ssh", 1.2))),
    CPU_BULK(),
)
SMALL = (paramiko("asyncssh", 1.0), openssh("ssh-gcm", 0.9))
LONG_BULK = partial(Metric, "rate", "Mbit/s", True, scale=1e-6)
FIRST_BYTE = (
    Metric("p50", "p50 µs", False, (paramiko("ssh", 1.2), openssh("ssh", 1.2))),
    Metric("p99", "p99 µs", False),
)

ROWS = {
    "ssh-up": Row("bulk up", "ssh", ALL, BULK, partial(bulk, down=False)),
    "ssh-down": Row("bulk down", "ssh", ALL, BULK, partial(bulk, down=True)),
    "ssh-behind": Row(
        "bulk down, in front of the OpenSSH client",
        "ssh",
        ("ssh-openssh", "ssh-c"),
        (GBIT((openssh("ssh-c", 0.95),)), CPU_BULK()),
        partial(bulk, down=True),
    ),
    "ssh-requests": Row(
        "keep-alive requests",
        "ssh",
        ALL,
        (RATE(title="requests/s", goals=SMALL), CPU(title="CPU µs per request")),
        partial(requests, keep=True),
    ),
    "ssh-streams": Row(
        "new streams",
        "ssh",
        ALL,
        (RATE(title="streams/s", goals=SMALL), CPU(title="CPU µs per stream")),
        partial(requests, keep=False),
    ),
    "ssh-long-down": Row(
        "100 ms, 1 Gbit/s, down",
        "ssh",
        LONG,
        (LONG_BULK((paramiko("ssh", 2.0), openssh("ssh-gcm", 1.0))),),
        partial(bulk, down=True, far=True),
    ),
    "ssh-long-up": Row("100 ms, 1 Gbit/s, up", "ssh", LIKE_SSH, (LONG_BULK(),), partial(bulk, down=False, far=True)),
    "ssh-answer": Row(
        "first byte of a new stream, client first",
        "ssh",
        OPENING,
        FIRST_BYTE,
        partial(first_byte, server="echo", client="speak"),
    ),
    "ssh-greeting": Row(
        "first byte of a new stream, server first",
        "ssh",
        OPENING,
        FIRST_BYTE,
        partial(first_byte, server="greet", client="hear"),
    ),
    "ssh-busy": Row(
        "64-byte round trips beside a busy thread",
        "ssh",
        ("ssh-paramiko", "ssh-spawn"),
        (
            RATE(title="round trips/s", goals=(Goal("ssh-paramiko", 0.9, peer="ssh-spawn"),)),
            Metric("p50", "p50 µs", False),
            Metric("p99", "p99 µs", False),
        ),
        busy,
    ),
}
