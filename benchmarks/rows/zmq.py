"""Measurements of ØMQ sockets over SSH: ``relay.compat.zmqssh``, and the original, which uses ``ssh -L``."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib.util import find_spec

from ..goals import Goal, Metric, Row, Sample
from ..loads.tcp import Lab
from ..machine import UnavailableError, run

PATIENCE = 30.0  # seconds for the login, and for what is under way at the end
ALL = ("zmq-openssh", "zmq-paramiko", "zmq-original")


def load(lab: Lab, peer: str, what: str, size: int) -> Sample:
    """One socket over a tunnel of its own."""
    kind = peer.removeprefix("zmq-")
    if kind == "original" and find_spec("pexpect") is None:
        raise UnavailableError("pexpect is not installed: make bench")
    with lab.ssh_server() as server:
        folder = server.key.with_name("zmq")
        folder.mkdir()
        words = [what, kind, server.port, server.user, server.key, server.known_hosts, folder, lab.seconds, size]
        argv = [sys.executable, "-m", "benchmarks.loads.zmq", *map(str, words)]
        sample: Sample = json.loads(run(argv, lab.seconds + PATIENCE))
    return sample


def messages(title: str, size: int) -> Row:
    goal = Goal("zmq-original", 1.2, peer="zmq-openssh")
    metric = Metric("rate", "messages/s", True, (goal,))
    return Row(title, "zmq", ALL, (metric,), partial(load, what="push", size=size))


ROWS = {
    "zmq-small": messages("PUSH/PULL, 100 bytes", 100),
    "zmq-large": messages("PUSH/PULL, 64 KiB", 65536),
    "zmq-ask": Row(
        "REQ/REP, 100 bytes",
        "zmq",
        ALL,
        (
            Metric("p50", "p50 µs", False, (Goal("zmq-original", 1.0, peer="zmq-openssh"),)),
            Metric("p99", "p99 µs", False),
        ),
        partial(load, what="ask", size=100),
    ),
}
