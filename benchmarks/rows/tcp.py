"""The rows of all tables: peers, measurements and goals."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from resource import RLIMIT_NOFILE, getrlimit
from socket import create_server

from ..goals import CPU, CPU_BULK, GBIT, LEAST_CONNECTIONS, MOST_FOR_CONNECTIONS, RATE, Goal, Metric, Row, Sample
from ..jobs import DIRECT, HELD, Target
from ..loads.tcp import GIB, Lab, held, iperf3, wrk
from ..machine import LOOPBACK, UnavailableError
from . import access, chain, growth, i2p, instructions, operations, socks, ssh, tls, up, warm, websocket, workers, zmq


def bulk(lab: Lab, peer: str, streams: int) -> Sample:
    """iperf3 for as long as the lab says."""
    with lab.iperf3_server() as target, lab.relay(peer, target) as relay:
        relay.begin()
        size, seconds = iperf3(relay.port, streams, lab.seconds)
        return {"rate": size * 8 / seconds} | relay.cost(size / GIB)


def requests(lab: Lab, peer: str, keep: bool) -> Sample:
    """Requests of wrk to nginx, which answers 50 bytes."""
    with lab.web_server() as target, lab.relay(peer, target) as relay:
        relay.begin()
        done = wrk(relay.port, lab.seconds, keep=keep)
        return {"rate": done["requests"] / done["seconds"]} | relay.cost(done["requests"])


def ping_pong(lab: Lab, peer: str) -> Sample:
    """64-byte round trips; client, relay and server share a core."""
    with lab.one_core(), lab.echo_server() as target, lab.relay(peer, target) as relay:
        relay.begin()
        done = lab.ping(relay.port)
        return {"rate": done["count"] / done["seconds"], "p50": done["p50"], "p99": done["p99"]} | relay.cost(
            done["count"]
        )


def busy_ping_pong(lab: Lab, peer: str) -> Sample:
    """The same with a busy thread on the other core: in the program that relays, or in another one beside the command.

    The latter tells what the busy core costs by itself, without the interpreter's lock; ``relay`` is the command alone.
    """
    with lab.busy_program() if peer == "relay-beside" else nullcontext():
        return ping_pong(lab, peer)


def idle(lab: Lab, peer: str) -> Sample:
    """The memory that connections take which are held and do nothing."""
    if getrlimit(RLIMIT_NOFILE)[0] < 2 * HELD + 500:
        raise UnavailableError(f"{HELD} connections need a hard limit of {2 * HELD + 500} descriptors (ulimit -Hn)")
    with create_server((LOOPBACK, 0), backlog=4096) as listener:
        listener.settimeout(15)
        with lab.relay(peer, Target(listener.getsockname()[1])) as relay:
            assert relay.process is not None
            before = relay.process.memory()
            with held(relay.port, listener):
                return {"memory": (relay.process.memory() - before) / HELD}


BULK = (
    GBIT((Goal("haproxy-tuned", 1.0), Goal("c", 0.95), Goal("haproxy", 1.4))),
    CPU_BULK((Goal("c", 1.05, 1.1),)),
)
STATUS_GOALS = (Goal("relay", 0.99, peer="relay-status"),)
RELAYS = ("relay", "relay-limits", "haproxy", "haproxy-tuned", "nginx", "socat", "c")

TABLES = {
    "tcp": "Relaying TCP",
    "program": "Inside a Python program",
    **tls.TABLES,
    **websocket.TABLES,
    "ssh": "Relaying over SSH",
    "i2p": "Relaying over I2P",
    "zmq": "ØMQ sockets over SSH",
    "pipe": "Standard input and output",
    "chain": "Relaying over two SSH servers",
    "socks": "Clients that name their targets",
    **access.TABLES,
    "up": "Many tunnels in one process",
    "operations": "Status and metrics",
    **workers.TABLES,
    **growth.TABLES,
    **instructions.TABLES,
    "warm": "Streams that are ready: the first byte over a link of 50 ms",
}
ROWS = {
    "bulk-1": Row("bulk, 1 stream", "tcp", (*RELAYS, DIRECT), BULK, partial(bulk, streams=1)),
    "bulk-8": Row("bulk, 8 streams", "tcp", (*RELAYS, DIRECT), BULK, partial(bulk, streams=8)),
    "requests": Row(
        "keep-alive requests",
        "tcp",
        (*RELAYS, DIRECT),
        (
            RATE(title="requests/s", goals=(Goal("haproxy", 1.0),)),
            CPU(title="CPU µs per request", goals=(Goal("haproxy", 1.05, 1.15), Goal("haproxy-tuned", 0.9))),
        ),
        partial(requests, keep=True),
    ),
    "connections": Row(
        "new connections",
        "tcp",
        (*RELAYS, DIRECT),
        (
            RATE(title="connections/s", goals=(Goal("haproxy", LEAST_CONNECTIONS),)),
            CPU(title="CPU µs per connection", goals=(Goal("haproxy", MOST_FOR_CONNECTIONS),)),
        ),
        partial(requests, keep=False),
    ),
    "ping-pong": Row(
        "64-byte round trips on one core",
        "tcp",
        (*RELAYS, DIRECT),
        (
            Metric("p50", "p50 µs", False, (Goal("haproxy", 1.1),)),
            Metric("p99", "p99 µs", False, (Goal("haproxy", 1.1),)),
            CPU(title="CPU µs per round trip"),
        ),
        ping_pong,
    ),
    "idle": Row(
        "9,000 idle connections",
        "tcp",
        ("relay", "relay-limits", "haproxy", "haproxy-tuned", "nginx", "c"),
        (Metric("memory", "KiB per connection", False, (Goal(None, 2.0),), scale=1 / 1024),),
        idle,
    ),
    "callable": Row(
        "new connections, own callable",
        "program",
        ("relay", "relay-callable", "haproxy"),
        (
            RATE(title="connections/s", goals=(Goal("haproxy", 0.7, peer="relay-callable"),)),
            CPU(title="CPU µs per connection"),
        ),
        partial(requests, keep=False),
    ),
    "busy": Row(
        "64-byte round trips beside a busy thread",
        "program",
        ("relay", "relay-beside", "relay-spawn", "relay-thread"),
        (
            RATE(title="round trips/s", goals=(Goal("relay", 0.9, peer="relay-spawn"),)),
            Metric("p50", "p50 µs", False),
            Metric("p99", "p99 µs", False),
        ),
        busy_ping_pong,
    ),
    "status-requests": Row(
        "keep-alive requests, with a monitor",
        "operations",
        ("relay", "relay-status"),
        (RATE(title="requests/s", goals=STATUS_GOALS), CPU(title="CPU µs per request")),
        partial(requests, keep=True),
    ),
    "status-bulk": Row(
        "bulk, 1 stream, with a monitor",
        "operations",
        ("relay", "relay-status"),
        (GBIT(STATUS_GOALS), CPU_BULK()),
        partial(bulk, streams=1),
    ),
    **tls.ROWS,
    **websocket.ROWS,
    **ssh.ROWS,
    **i2p.ROWS,
    **zmq.ROWS,
    **chain.ROWS,
    **socks.ROWS,
    **access.ROWS,
    **up.ROWS,
    **operations.ROWS,
    **workers.ROWS,
    **growth.ROWS,
    **instructions.ROWS,
    **warm.ROWS,
}
