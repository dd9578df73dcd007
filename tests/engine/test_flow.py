"""Whatever the chunking, short writes, would-blocks and ends: what comes out is what went in, in order, and bounded."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import BLOCK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.engine import flow as flow_module
from relay.engine.connection import Connection
from relay.engine.flow import BUFFER, Flow
from relay.engine.limits import Limits
from relay.engine.records import ConnectionState
from relay.engine.workspace import Workspace
from relay.eventloop.loop import Loop
from relay.eventloop.pipes import SIZE, PipePool
from relay.streams.stream import Stream
from relay.testing import pair


class Moody:
    """A socket that gives and takes what it likes: less than it could, and at times nothing."""

    def __init__(self, sock: socket.socket, chance: random.Random) -> None:
        self._sock = sock
        self._chance = chance
        self.most = 1 << 30  # bytes that it takes at once

    def recv(self, size: int) -> bytes:
        if self._chance.random() < 0.2:
            raise BlockingIOError
        return self._sock.recv(self._chance.choice([1, 7, size, size]))

    def send(self, data: bytes, flags: int = 0) -> int:
        if self._chance.random() < 0.2:
            raise BlockingIOError
        return self._sock.send(data[: self._chance.randint(1, max(1, min(len(data), self.most)))], flags)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Bench:
    """A connection between two socketpairs, whose loop the test turns by hand."""

    def __init__(
        self,
        *,
        splice: bool = True,
        half_close: bool = True,
        small: bool = True,
        chance: random.Random | None = None,
    ) -> None:
        self.loop, self.labels = Loop(), {}  # type: ignore[var-annotated]
        self.pipes = PipePool() if splice else None
        self.limits = Limits(None, None, None, None)
        self.reasons: list[str | None] = []
        self.client, client = socket.socketpair()
        self.target, target = socket.socketpair()
        for end in (self.client, client, self.target, target):
            end.setblocking(False)
            if small:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        self.now = 100.0
        self.name = "t"
        self.keepalive_enabled_until = 0.0
        self.entrance = SimpleNamespace(introduce=None)
        if chance is not None:
            client, target = Moody(client, chance), Moody(target, chance)
        self.connection = Connection(self, client, None, "a client", self.now)  # type: ignore[arg-type]
        stream = None if half_close else Stream(target, half_close=False)
        self.connection.open(target, stream, Workspace(self.loop, self.pipes), self.now)
        for flow in (self.connection.flows.upstream, self.connection.flows.downstream):
            flow.spliceable = splice  # as out of TCP

    def connection_over(self, connection: Connection) -> None:
        self.reasons.append(connection.summary.reason)

    def close_stream(self, stream: Stream, clean: bool) -> None:
        self.loop.discard(stream.socket)

    def turn(self) -> bool:
        events = self.loop.poller.poll(0, 128)
        self.now += 0.001
        for descriptor, event in events:
            handler = self.loop.handlers.get(descriptor)
            if handler is not None:
                handler(event, self.now)
        self.loop._close_garbage()
        return bool(events)

    def held(self) -> int:
        if self.connection.is_closed:
            return 0
        return sum(
            len(f.pending or b"") + f.piped for f in (self.connection.flows.upstream, self.connection.flows.downstream)
        )

    def close(self) -> None:
        if not self.connection.is_closed:
            self.connection.close("closed", self.now)
        self.loop._close_garbage()
        if self.pipes is not None:
            self.pipes.close()
        self.loop.close()
        self.client.close()
        self.target.close()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def send_some(end: socket.socket, data: bytes) -> int:
    try:
        return end.send(data)
    except BlockingIOError:
        return 0


def receive_some(end: socket.socket, size: int) -> bytes | None:
    try:
        return end.recv(size)
    except BlockingIOError:
        return None


sides = st.sampled_from(["client", "target"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), sides, st.integers(1, 300_000)),
        st.tuples(st.just("receive"), sides, st.integers(1, 300_000)),
        st.tuples(st.just("end"), sides, st.just(0)),
        st.tuples(st.just("turn"), sides, st.integers(1, 20)),
        st.tuples(st.just("chop"), sides, st.integers(1, 100_000)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("splice", [True, False], ids=["splice", "copy"])
@pytest.mark.parametrize("bulk_after", [0, 3], ids=["always bulk", "adaptive"])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(plan=steps, seed=st.integers(0, 1 << 30))
def test_what_comes_out_is_what_went_in(
    monkeypatch: pytest.MonkeyPatch, splice: bool, bulk_after: int, plan: list[tuple[str, str, int]], seed: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(flow_module, "_BULK_AFTER", bulk_after)
        patch.setattr(flow_module, "_COPY_AFTER", 1 + bulk_after)
        one = Bench(splice=splice, chance=random.Random(seed))
        try:
            if bulk_after == 0:
                one.connection.flows.upstream.full(BUFFER)
                one.connection.flows.downstream.full(BUFFER)
            play(one, plan)
        finally:
            one.close()


def play(one: Bench, plan: list[tuple[str, str, int]]) -> None:
    ends = {"client": one.client, "target": one.target}
    other = {"client": "target", "target": "client"}
    sent = {"client": bytearray(), "target": bytearray()}
    received = {"client": bytearray(), "target": bytearray()}
    over = {"client": False, "target": False}
    for action, side, amount in plan:
        if action == "send" and not over[side]:
            place = len(sent[side]) % 99_991
            data = BLOCK[place : place + amount]
            sent[side] += data[: send_some(ends[side], data)]
        elif action == "receive":
            received[side] += receive_some(ends[side], amount) or b""
        elif action == "end" and not over[side]:
            over[side] = True
            ends[side].shutdown(socket.SHUT_WR)
        elif action == "chop":
            one.connection.client.most = amount  # type: ignore[attr-defined]
        elif action == "turn":
            for _ in range(amount):
                one.turn()
        assert one.held() <= 2 * max(BUFFER, SIZE)
    for side in ("client", "target"):
        if not over[side]:
            ends[side].shutdown(socket.SHUT_WR)
    finished = {"client": False, "target": False}
    for _ in range(100_000):
        one.turn()
        for side in ("client", "target"):
            data = receive_some(ends[side], 1 << 20)
            received[side] += data or b""
            finished[side] |= data == b""
        if all(finished.values()) and one.connection.is_closed:
            break
    assert one.reasons == ["done"]
    for side in ("client", "target"):
        assert received[side] == sent[other[side]]
    assert one.connection.summary.received == len(sent["client"])
    assert one.connection.summary.sent == len(sent["target"])


def io_thread(one: Bench, source: socket.socket, sink: socket.socket, data: bytes) -> bytes:
    got = bytearray()
    view = memoryview(data)
    while len(got) < len(data):
        if view:
            view = view[send_some(source, view[:200_000]) :]
        one.turn()
        got += receive_some(sink, 1 << 20) or b""
    return bytes(got)


def test_a_flow_copies_first_splices_bulk_and_copies_again(bench: Callable[..., Bench]) -> None:
    one = bench(small=False)
    up = one.connection.flows.upstream
    assert io_thread(one, one.client, one.target, b"small") == b"small"
    assert up.handler == up.copy and not up.spliced_bytes()
    assert io_thread(one, one.client, one.target, BLOCK * 2) == BLOCK * 2
    assert up.handler == up.splice
    assert one.connection.record(one.now).engine == "splice"
    for _ in range(40):
        assert io_thread(one, one.client, one.target, b"small again") == b"small again"
    assert up.handler == up.copy
    assert one.connection.record(one.now).engine == "splice"
    moved = up.moved
    assert 0 < up.spliced_bytes() < moved  # the first buffers of a bulk transfer and the small ones were copied
    spliced = up.spliced_bytes()
    assert io_thread(one, one.client, one.target, BLOCK * 2) == BLOCK * 2
    assert up.handler == up.splice
    assert spliced + len(BLOCK) < up.spliced_bytes() < spliced + up.moved - moved
    assert one.connection.bytes_moved() == (up.moved, 0, up.spliced_bytes(), 0)
    spliced = up.spliced_bytes()
    one.connection.close("killed", one.now)
    assert one.connection.bytes_moved() == (up.moved, 0, spliced, 0)


def test_bulk_is_read_out_of_a_unix_socket_as_much_as_it_holds(bench: Callable[..., Bench]) -> None:
    one = bench(splice=False, small=False)
    sent: list[int] = []
    up = one.connection.flows.upstream
    send = up.send
    up.send = lambda data: sent.append(len(data)) or send(data)  # type: ignore[func-returns-value]
    assert io_thread(one, one.client, one.target, BLOCK * 2) == BLOCK * 2
    assert sent[:3] == [flow_module.BUFFER] * 3
    assert max(sent) > flow_module.BUFFER
    assert one.connection.record(one.now).engine == "copy"


@pytest.mark.parametrize(("size", "splices"), [(65_483, True), (32_768, True), (32_767, False)])
def test_large_reads_in_a_row_are_bulk_also_if_none_fills_the_buffer(
    bench: Callable[..., Bench], size: int, splices: bool
) -> None:
    """The window of one of a thousand streams stays at 65,483 bytes, so that no read of it fills the buffer."""
    one = bench(small=False)
    up = one.connection.flows.upstream
    for _ in range(3):
        assert io_thread(one, one.client, one.target, BLOCK[:size]) == BLOCK[:size]
    assert (up.handler == up.splice) == splices


@pytest.mark.parametrize("first", [b"small", BLOCK], ids=["small", "bulk"])
@pytest.mark.parametrize("blocked", [False, True])
def test_the_time_of_the_first_byte_stays(bench: Callable[..., Bench], first: bytes, blocked: bool) -> None:
    one = bench(small=False)
    down = one.connection.flows.downstream
    assert down.first == down.last == 0.0
    send = down.send
    if blocked:
        down.send = _block
    send_some(one.target, first)
    one.turn()
    came = down.first or down.last
    assert came == one.now
    down.send = send
    one.now += 5
    assert io_thread(one, one.target, one.client, first)
    assert down.first == came < down.last


def _block(data: memoryview) -> int:
    raise BlockingIOError


def test_a_flow_that_is_about_to_splice_has_copied(bench: Callable[..., Bench]) -> None:
    one = bench(small=False)
    up = one.connection.flows.upstream
    up.moved = 5
    up.use(up.splice)
    assert (up.spliced, up.spliced_bytes()) == (-5, 0)
    assert one.connection.record(one.now).engine == "copy"
    one.connection.close("killed", one.now)
    assert one.connection.record(one.now).engine == "copy"


def test_without_a_pipe_a_bulk_flow_copies(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench(small=False)
    monkeypatch.setattr(PipePool, "make", lambda self: None)
    assert io_thread(one, one.client, one.target, BLOCK * 3) == BLOCK * 3
    assert one.connection.flows.upstream.pending is None


def test_sockets_that_cannot_be_spliced_are_copied(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = bench(small=False)

    def refuse(*args: object, **options: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "splice", refuse)
    assert io_thread(one, one.client, one.target, BLOCK * 2) == BLOCK * 2
    assert not one.connection.flows.upstream.spliceable
    assert one.connection.flows.downstream.spliceable


@pytest.mark.parametrize(("family", "splices"), [(socket.AF_INET, True), (socket.AF_UNIX, False)])
def test_what_comes_out_of_a_unix_socket_is_copied(family: int, splices: bool) -> None:
    loop, pipes = Loop(), PipePool()
    source, far = pair(family)
    with source, far:
        flow = Flow(None, Workspace(loop, pipes), source, far)  # type: ignore[arg-type]
        assert flow.can_splice() is splices
    pipes.close()
    loop.close()


def test_a_full_sink_stops_the_reading(bench: Callable[..., Bench]) -> None:
    one = bench()
    while one.turn() or send_some(one.client, BLOCK):
        pass
    assert 0 < one.held() <= max(BUFFER, SIZE)
    assert send_some(one.client, b"more") == 0, "the pressure does not reach the sender"
    assert not one.turn(), "a blocked connection must not keep the loop busy"


@pytest.mark.parametrize("splice", [True, False], ids=["splice", "copy"])
def test_the_end_travels_behind_the_bytes(bench: Callable[..., Bench], splice: bool) -> None:
    one = bench(splice=splice)
    one.client.send(b"request")
    one.client.shutdown(socket.SHUT_WR)
    one.turn()
    assert receive_some(one.target, 100) == b"request"
    assert receive_some(one.target, 100) == b""
    assert one.connection.state is ConnectionState.HALF_CLOSED
    assert io_thread(one, one.target, one.client, b"reply") == b"reply"
    one.target.close()
    one.turn()
    assert receive_some(one.client, 100) == b""
    assert one.reasons == ["done"]


def test_a_hang_up_that_nobody_waits_for_does_not_spin(bench: Callable[..., Bench]) -> None:
    one = bench()
    sent = 0
    while (taken := send_some(one.client, BLOCK[sent : sent + 3000])) or one.turn():
        sent += taken
    one.client.close()  # all of it is still to be delivered, and the hang-up is reported without end
    for _ in range(5):
        one.turn()
    assert not one.turn()
    got = bytearray()
    for _ in range(10_000):
        data = receive_some(one.target, 1 << 20)
        got += data or b""
        one.turn()
        if data == b"":
            break
    assert bytes(got) == BLOCK[:sent]


def test_what_was_said_before_a_reset_is_passed_on() -> None:
    one = Bench(small=False)
    try:
        up = one.connection.flows.upstream
        one.target.send(b"413 too large")
        up.sink_failed(one.now)
        assert receive_some(one.client, 100) == b"413 too large"
        assert one.reasons == ["target_reset"]
    finally:
        one.close()


@pytest.mark.parametrize("splice", [True, False], ids=["splice", "copy"])
def test_what_a_stream_without_half_close_did_not_take_is_dropped_at_its_end(
    bench: Callable[..., Bench], splice: bool
) -> None:
    one = bench(splice=splice, half_close=False)
    if splice:
        one.connection.flows.upstream.use(one.connection.flows.upstream.splice)
    while one.turn() or send_some(one.client, BLOCK):
        pass
    assert one.held()
    one.target.send(b"early reply")
    one.target.shutdown(socket.SHUT_WR)
    while one.turn():
        pass
    assert one.held() == 0
    one.target.close()
    one.turn()
    assert receive_some(one.client, 100) == b"early reply"
    assert receive_some(one.client, 100) == b""
    one.client.close()
    while one.turn():
        pass
    assert one.reasons == ["done"]
