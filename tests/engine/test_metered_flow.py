"""Metered flows on a clock of their own: exact over ten seconds, fair, and whole, by copy and by splice."""

from __future__ import annotations

import contextlib
import socket
import sys

import pytest
from helpers import BLOCK

from relay.access.gate import Gate
from relay.access.limit import check_limits
from relay.access.policy import ClientPolicy
from relay.engine.connection import Connection
from relay.engine.limits import Limits
from relay.engine.metered_flow import MeteredFlow, MeteredSessionFlow
from relay.engine.workspace import Workspace
from relay.eventloop.loop import Loop
from relay.eventloop.pipes import PipePool
from relay.streams.identity import Identity
from relay.streams.request import Request
from relay.streams.session_socket import SessionSocket
from relay.testing import pair

CLIENT = Identity("tcp", "192.0.2.7", "192.0.2.7", 5)
PACING = 47


class Plain(SessionSocket):
    """A session that changes nothing; a read of its transport brings all that it was asked for at least."""

    def __init__(self, transport):
        super().__init__(transport)
        self.transport = transport
        self.held = b""
        self.shutdown, self.send, self.close = transport.shutdown, transport.send, transport.close

    has_input = property(lambda self: bool(self.held))
    must_flush = property(lambda self: False)
    is_stalled = property(lambda self: False)

    def recv(self, size, flags=0):
        data = self.held or self.transport.recv(16384, flags)
        self.held = data[size:]
        return data[:size]


class Bench:
    """Connections of one client, whose loop and clock the test turns."""

    def __init__(self, stack, limits, *, splice=True, family=socket.AF_INET):
        self.name = "t"
        self.labels = {}
        self.limits = Limits(None, None, None, None)
        self.keepalive_enabled_until = 0.0
        self.now = 1000.0
        self.loop = Loop()
        self.over = []
        self.stack = stack
        self.family = family
        self.gate = Gate(ClientPolicy(limits=check_limits(limits)), self.loop.timers)
        pipes = PipePool() if splice else None
        self.work = Workspace(self.loop, pipes)
        if pipes is not None:
            stack.callback(pipes.close)
        stack.callback(self.loop.close)
        stack.callback(self.loop._close_garbage)
        self.entrance = self
        self.introduce = None
        self.lines = []

    def connection_over(self, connection):
        self.over.append((connection.summary.reason, connection.summary.rule))

    def connect(self, session=False, early=b""):
        """Open a connection; its ends take what they can get."""
        client, near = pair(self.family)
        target, far = pair(self.family)
        for end in (client, near, target, far):
            self.stack.callback(end.close)
            end.setblocking(False)
        connection = Connection(self, Plain(near) if session else near, None, "a client", self.now)
        connection.ticket = self.gate.enter(CLIENT, self.now)
        if early:
            connection.summary.request = Request("host", 1, b"", lambda reason: b"", early)
        if session:
            connection.client_stream = type(
                "S", (), {"half_close": True, "settle": 0.0, "failure": None, "reset": close}
            )()
        connection.open(far, None, self.work, self.now)
        self.stack.callback(lambda: connection.close("closed", self.now))
        line = Line(connection, client, target)
        self.lines.append(line)
        return line

    def close_stream(self, stream, clean):
        pass

    def run(self, seconds, step=1 / 256):
        """Let the time pass, while every client sends what it can and every target reads it."""
        end = self.now + seconds
        while self.now < end:
            for line in self.lines:
                line.fill()
            for descriptor, event in self.loop.poller.poll(0, 128):
                handler = self.loop.handlers.get(descriptor)
                if handler is not None:
                    handler(event, self.now)
            for line in self.lines:
                line.drain()
            self.now += step
            if self.loop.timers.first <= self.now:
                self.loop.timers.run(self.now)


def close(self=None):
    pass


class Line:
    def __init__(self, connection, client, target):
        self.connection, self.client, self.target = connection, client, target
        self.sent = self.received = 0
        self.total = 1 << 62
        self.is_whole = True

    def fill(self):
        with contextlib.suppress(BlockingIOError, ConnectionResetError, BrokenPipeError):
            while self.sent < self.total:
                begin = self.sent % len(BLOCK)
                self.sent += self.client.send(BLOCK[begin : begin + min(1 << 18, self.total - self.sent)])

    def drain(self):
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while piece := self.target.recv(1 << 18):
                begin = self.received % len(BLOCK)
                self.is_whole = self.is_whole and piece == (BLOCK + BLOCK)[begin : begin + len(piece)]
                self.received += len(piece)


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(
    ("count", "rate", "splice", "session"),
    [
        (1, 2_000_000, False, False),
        (1, 2_000_000, True, False),
        (1, 2_000_000, False, True),
        (7, 2_000_000, True, False),
        (7, 2_000_000, False, True),
        (100, 2_000_000, True, False),
    ],
)
def test_a_shared_bandwidth_is_exact_and_fair_over_ten_seconds(stack, count, rate, splice, session):
    bench = Bench(stack, [{"per": "tunnel", "bandwidth": rate}], splice=splice)
    lines = [bench.connect(session) for _ in range(count)]
    bench.run(10.0, step=1 / 32 if count == 100 else 1 / 128)
    received = [line.received for line in lines]
    assert sum(received) == pytest.approx(rate * 10, rel=0.05)
    assert min(received) >= rate * 10 / count / 2
    assert all(line.is_whole for line in lines)


def test_a_splice_stays_one_with_a_shared_bandwidth(stack):
    bench = Bench(stack, [{"per": "tunnel", "bandwidth": "50MB/s"}])
    line = bench.connect()
    bench.run(1.0)
    assert line.connection.record(bench.now).engine == "splice"


def test_a_small_bandwidth_of_one_tcp_connection_is_exact(stack):
    """The kernel sends the first ten segments at once, and one has 64 KiB on the loopback."""
    bench = Bench(stack, [{"per": "connection", "bandwidth": "20kB/s"}])
    line = bench.connect()
    assert isinstance(line.connection.flows.downstream, MeteredFlow)
    bench.run(10.0, step=1 / 64)
    assert line.received == pytest.approx(200_000, rel=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel has no pacing")
def test_a_large_bandwidth_of_one_tcp_connection_is_left_to_the_kernel(stack):
    bench = Bench(stack, [{"per": "connection", "bandwidth": "3MB/s"}])
    line = bench.connect()
    flows = line.connection.flows
    assert not isinstance(flows.upstream, MeteredFlow) and not isinstance(flows.downstream, MeteredFlow)
    for sock in (flows.upstream.source, flows.upstream.sink):
        assert int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, PACING, 8), sys.byteorder) == 3_000_000


def test_the_bandwidth_of_one_connection_of_another_kind_is_metered_alone(stack):
    bench = Bench(stack, [{"per": "connection", "bandwidth": "1MB/s"}], family=socket.AF_UNIX)
    lines = [bench.connect() for _ in range(3)]
    bench.run(4.0)
    for line in lines:
        assert line.received == pytest.approx(4_000_000, rel=0.08)


def test_each_direction_has_the_whole_bandwidth(stack):
    bench = Bench(stack, [{"per": "tunnel", "bandwidth": "1MB/s"}])
    line = bench.connect()
    back = Line(line.connection, line.target, line.client)
    bench.lines.append(back)
    line.drain, back.drain = back.drain, line.drain
    bench.run(4.0)
    assert line.received + back.received == pytest.approx(8_000_000, rel=0.08)


def test_the_narrower_of_two_bandwidths_holds(stack):
    bench = Bench(stack, [{"per": "tunnel", "bandwidth": "2MB/s"}, {"per": "ip", "bandwidth": "1MB/s"}])
    lines = [bench.connect() for _ in range(4)]
    bench.run(6.0)
    assert sum(line.received for line in lines) == pytest.approx(6_000_000, rel=0.06)


@pytest.mark.parametrize("splice", [False, True])
@pytest.mark.parametrize("session", [False, True])
def test_a_transfer_ends_whole_with_its_end_of_file(stack, splice, session):
    bench = Bench(stack, [{"per": "tunnel", "bandwidth": "1MB/s"}], splice=splice)
    line = bench.connect(session)
    line.total = 1_500_000
    bench.run(0.5)
    line.client.shutdown(socket.SHUT_WR) if line.sent == line.total else None
    bench.run(2.0)
    if line.sent == line.total:
        with contextlib.suppress(OSError):
            line.client.shutdown(socket.SHUT_WR)
    bench.run(0.5)
    assert line.received == line.total and line.is_whole
    assert line.connection.state.text == "half-closed"
    line.target.shutdown(socket.SHUT_WR)
    bench.run(0.1)
    assert [reason for reason, _ in bench.over] == ["done"]


@pytest.mark.parametrize("session", [False, True])
def test_what_comes_with_the_request_of_a_proxy_client_counts(stack, session):
    bench = Bench(stack, [{"per": "tunnel", "bandwidth": "2kB/s"}, {"name": "q", "quota": "5kB/day"}])
    line = bench.connect(session, early=BLOCK[:4000])
    line.sent, line.total = 4000, 6000
    bench.run(1.5)
    assert line.received == 4000
    bench.run(2.0)
    assert line.received == 5000 and line.is_whole
    assert bench.over == [("quota", "limit q")]


@pytest.mark.parametrize("splice", [False, True])
def test_a_quota_ends_the_connection_after_its_last_byte(stack, splice):
    bench = Bench(stack, [{"name": "q", "quota": "3MB/day"}], splice=splice)
    lines = [bench.connect(), bench.connect()]
    bench.run(1.0)
    assert sum(line.received for line in lines) == 3_000_000
    assert bench.over == [("quota", "limit q")] * 2
    assert bench.gate.enter(CLIENT, bench.now).rule == "limit q"


def test_a_transfer_of_exactly_the_quota_is_whole(stack):
    bench = Bench(stack, [{"name": "q", "quota": "1MB/day"}])
    line = bench.connect()
    line.total = 1_000_000
    line.fill()
    bench.run(0.5)
    line.client.shutdown(socket.SHUT_WR)
    bench.run(0.1)
    assert line.received == 1_000_000 and line.connection.state.text == "half-closed"


def test_a_parked_flow_that_is_closed_leaves_nothing_behind(stack):
    bench = Bench(stack, [{"per": "tunnel", "bandwidth": "1MB/s"}])
    lines = [bench.connect(), bench.connect(session=True)]
    bench.run(0.5)
    kinds = [type(line.connection.flows.upstream) for line in lines]
    assert kinds == [MeteredFlow, MeteredSessionFlow]
    assert any(line.connection.flows.upstream.budget.is_waiting for line in lines)
    for line in lines:
        line.connection.close("killed", bench.now)
    assert bench.loop.timers.first == float("inf")
    bench.run(1.0)
    assert len(bench.over) == 2


def test_a_reset_of_the_sink_while_a_flow_is_parked_ends_the_connection(stack):
    bench = Bench(stack, [{"per": "tunnel", "bandwidth": "100kB/s"}])
    line = bench.connect()
    bench.run(0.5)
    line.target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    line.target.close()
    bench.lines.clear()
    bench.run(1.0)
    assert [reason for reason, _ in bench.over] == ["target_reset"]
