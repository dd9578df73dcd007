"""Measurements of warm streams: the first byte of a new client over a long link, beside a round trip on an open one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

from ..goals import Goal, Metric, Row, Sample
from ..jobs import DIRECT, Target
from ..loads.tcp import Lab, Relay
from ..machine import LOOPBACK, MeasurementError, Process, free_port, relay_command, run
from ..peers.ssh import WARM
from ..sshd import linked

ONE_WAY = 25  # milliseconds: 50 there and back
PATIENCE = 60.0  # seconds for a load beyond its own time

Way = Callable[[Lab, str, Target], AbstractContextManager[Relay]]


@contextmanager
def over_tcp(lab: Lab, peer: str, target: Target) -> Iterator[Relay]:
    """A target behind the link."""
    with lab.long_link(target, ONE_WAY) as far, lab.relay(peer, far) as relay:
        yield relay


@contextmanager
def over_tls(lab: Lab, peer: str, target: Target) -> Iterator[Relay]:
    """The same with TLS."""
    with lab.over_tls(target) as near, lab.long_link(near, ONE_WAY) as far, lab.relay(peer, far) as relay:
        yield relay


@contextmanager
def over_ssh(lab: Lab, peer: str, target: Target) -> Iterator[Relay]:
    """A target beside an SSH server behind the link."""
    with lab.ssh_server(far=True, milliseconds=ONE_WAY) as server:
        with lab.relay(peer, Target(target.port, server=server)) as relay:
            yield relay


@contextmanager
def over_two(lab: Lab, peer: str, target: Target) -> Iterator[Relay]:
    """A target beside an SSH server that is beside another one behind the link."""
    with lab.ssh_server(far=True, milliseconds=ONE_WAY) as before, lab.ssh_server() as server:
        with lab.relay(peer, Target(target.port, server=server, before=before)) as relay:
            yield relay


def first_byte(lab: Lab, peer: str, way: Way) -> Sample:
    """The time of a new client to its first byte; of no peer, the round trip of a connection that is open."""
    with lab.opening_server("echo") as target:
        if peer == DIRECT:
            with lab.long_link(target, ONE_WAY) as far:
                done = lab.ping(far.port)
        else:
            with way(lab, peer, target) as relay:
                done = lab.first_bytes(relay.port, "speak")
        return {"p50": done["p50"], "p99": done["p99"]}


@contextmanager
def i2p_bridge(lab: Lab, target: Target) -> Iterator[tuple[str, int]]:
    """The embedded SAM bridge behind the link, and a destination there that leads to a target.

    :returns: the destination, and the port of the bridge at this end of the link.
    """
    directory, port = Path(mkdtemp(dir=lab.directory)), free_port()
    bridge = [sys.executable, "-m", "relay.testing.sambridge", "--port", str(port)]
    there = f"i2p:?sam={LOOPBACK}:{port}&keys={directory / 'keys.dat'}"
    expose = [relay_command(), "expose", f"{LOOPBACK}:{target.port}", "--on", there]
    with ExitStack() as stack:
        stack.enter_context(Process(bridge, port, directory / "log"))
        server = stack.enter_context(
            subprocess.Popen(expose, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        )
        stack.callback(server.kill)
        assert server.stdout is not None
        address = server.stdout.readline().decode().split()[0]
        if not server.stdout.readline().startswith(b"published"):
            raise MeasurementError("the destination was not published")
        yield address, stack.enter_context(linked(port, ONE_WAY, directory))


def over_i2p(lab: Lab, peer: str) -> Sample:
    """The same with a destination of a SAM bridge behind the link; its streams have no half-close, and other loads."""
    if peer == DIRECT:
        return first_byte(lab, peer, over_tcp)
    load = [sys.executable, "-m", "benchmarks.loads.i2p"]
    target, port = Target(free_port()), free_port()
    with (
        Process([*load, "serve", str(target.port)], target.port, lab.directory / "target.log"),
        i2p_bridge(lab, target) as (address, sam),
    ):
        options = WARM if peer == "i2p-warm" else ()
        place = f"i2p://{address}?sam={LOOPBACK}:{sam}"
        forward = [relay_command(), "forward", *options, f"{LOOPBACK}:{port}", place]
        with Process(forward, port, lab.directory / "forward.log"):
            answer = run([*load, "connections", str(port), str(lab.seconds + 1), "1"], lab.seconds + PATIENCE)
        return {"p50": json.loads(answer)["p50"] * 1e6}


def row(title: str, measure: Callable[[Lab, str], Sample], *peers: str) -> Row:
    """A row whose first peer has warm streams."""
    goals = (Goal(DIRECT, 1.1, peer=peers[0]),)
    metrics = (
        Metric("p50", "p50 ms", False, goals, scale=1e-3),
        Metric("p99", "p99 ms", False, scale=1e-3),
    )
    return Row(title, "warm", (*peers, DIRECT), metrics, measure)


ROWS = {
    "warm-tcp": row("TCP", partial(first_byte, way=over_tcp), "relay-warm", "relay", "haproxy"),
    "warm-tls": row("TLS", partial(first_byte, way=over_tls), "relay-warm", "relay", "haproxy", "stunnel"),
    "warm-ssh": row(
        "SSH", partial(first_byte, way=over_ssh), "ssh-warm", "ssh-paramiko", "ssh-warm-openssh", "ssh-openssh", "ssh"
    ),
    "warm-chain": row("ssh → ssh", partial(first_byte, way=over_two), "chain-warm", "chain-paramiko", "chain-ssh"),
    "warm-i2p": row("I2P, embedded bridge", over_i2p, "i2p-warm", "i2p-relay"),
}
