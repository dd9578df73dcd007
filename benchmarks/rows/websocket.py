"""Measurements of two relays with WebSockets, TLS or an HTTPS proxy between them, and of websockify."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ..goals import CPU_BULK, GBIT, RATE, Goal, Metric, Row, Sample
from ..jobs import Target
from ..loads.tcp import GIB, Lab, Relay, iperf3, wrk
from ..machine import LOOPBACK, Process, free_port, program, relay_command

OURS = "websocket-wss"
PEERS = (OURS, "websocket-tls", "websocket-https", "websocket-ws", "websocket-websockify")
OF_TLS = partial(Goal, "websocket-tls", peer=OURS)


@contextmanager
def between(lab: Lab, peer: str, target: Target) -> Iterator[Relay]:
    """The near one of two ends, behind which the far one leads to a target."""
    scheme, port, ca = peer.rpartition("-")[2], free_port(), lab.certificate()
    pair = f"?cert={ca.with_name('server.pem')}&key={ca.with_name('server.key')}" if scheme != "ws" else ""
    listen = f"{scheme}://{LOOPBACK}:{port}{'/' if scheme in ('ws', 'wss') else ''}{pair}"
    words = [relay_command(), "forward", listen, f"{LOOPBACK}:{target.port}"]
    if scheme == "https":
        words = [relay_command(), "socks", listen]
    if scheme == "websockify":
        words = [program("websockify"), f"{LOOPBACK}:{port}", f"{LOOPBACK}:{target.port}"]
    with Process(words, port, lab.folder() / "log"), lab.relay(peer, Target(port, ca, behind=target.port)) as relay:
        yield relay


def bulk(lab: Lab, peer: str, down: bool) -> Sample:
    """Bulk in one direction: what goes to the far end is masked, what comes from it is not."""
    with lab.iperf3_server() as target, between(lab, peer, target) as relay:
        relay.begin()
        size, seconds = iperf3(relay.port, 1, lab.seconds, down=down)
        return {"rate": size * 8 / seconds} | relay.cost(size / GIB)


def streams(lab: Lab, peer: str) -> Sample:
    """Requests with a connection for each, and so a stream with its handshakes."""
    with lab.web_server() as target, between(lab, peer, target) as relay:
        relay.begin()
        done = wrk(relay.port, lab.seconds, keep=False)
        return {"rate": done["requests"] / done["seconds"]} | relay.cost(done["requests"])


def ping(lab: Lab, peer: str) -> Sample:
    """64-byte round trips; all share a core."""
    with lab.one_core(), lab.echo_server() as target, between(lab, peer, target) as relay:
        relay.begin()
        done = lab.ping(relay.port)
        return {"p50": done["p50"], "p99": done["p99"]} | relay.cost(done["count"])


TABLES = {"websocket": "WebSockets, TLS or an HTTPS proxy between two relays"}
ROWS = {
    "websocket-up": Row(
        "bulk to the far end, masked",
        "websocket",
        PEERS,
        (GBIT((OF_TLS(0.7),)), CPU_BULK()),
        partial(bulk, down=False),
    ),
    "websocket-down": Row(
        "bulk from the far end", "websocket", PEERS, (GBIT((OF_TLS(0.7),)), CPU_BULK()), partial(bulk, down=True)
    ),
    "websocket-streams": Row(
        "new streams", "websocket", PEERS[:4], (RATE(title="streams/s", goals=(OF_TLS(0.7),)),), streams
    ),
    "websocket-ping-pong": Row(
        "64-byte round trips on one core",
        "websocket",
        PEERS,
        (Metric("p50", "p50 µs", False, (OF_TLS(1.3),)), Metric("p99", "p99 µs", False)),
        ping,
    ),
}
