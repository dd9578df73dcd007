"""A flow out of a session: it copies what no event announces, and sends what waits in the session."""

from __future__ import annotations

import select
import socket
from types import SimpleNamespace

import pytest

from relay.engine import flow_pair
from relay.engine.flow_pair import FlowPair
from relay.engine.session_flow import NOTHING, SessionFlow
from relay.engine.workspace import Workspace
from relay.eventloop.loop import Loop
from relay.eventloop.poller import IN, OUT, READ
from relay.streams.session_socket import SessionSocket, session_of

END = b""


class Session(SessionSocket):
    """A session whose far end says what the test scripts, one item for each ``recv``."""

    def __init__(self, transport: socket.socket) -> None:
        super().__init__(transport)
        self.transport = transport
        self.script: list[bytes | memoryview | OSError] = []
        self.ahead = 0  # items that no event announces
        self.reads = 0
        self.sent = b""
        self.takes = True
        self.waiting = b""
        self.stalled = False
        self.ended = False
        self.needs = False  # input, before it can send

    @property
    def has_input(self) -> bool:
        return self.ahead > 0 and bool(self.script)

    @property
    def must_flush(self) -> bool:
        return bool(self.waiting)

    @property
    def needs_input(self) -> bool:
        return self.needs

    @property
    def is_stalled(self) -> bool:
        return self.stalled

    def recv(self, size: int, flags: int = 0, /) -> bytes | memoryview:
        self.reads += 1
        assert self.reads < 100, "it reads without end"
        self.ahead = max(0, self.ahead - 1)
        if not self.script:
            raise BlockingIOError
        item = self.script.pop(0)
        if isinstance(item, OSError):
            raise item
        return item

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        if not self.takes:
            raise BlockingIOError
        self.sent += self.waiting + bytes(data)
        self.waiting, self.stalled = b"", False
        return len(data)

    def shutdown(self, how: int, /) -> None:
        self.ended = True
        if not self.takes:
            self.waiting = b"close_notify"

    def close(self) -> None:
        self.transport.close()

    abandon = close


class Owner:
    """A connection, as far as its flows need one."""

    def __init__(self) -> None:
        self.client_stream = None
        self.target_stream = SimpleNamespace(settle=0.0, failure=None, half_close=True, answered=True)
        self.reason: str | None = None
        self.closed_at: float | None = None
        self.deadline = self
        self.flows: FlowPair | None = None

    def close(self, reason: str, now: float) -> None:
        self.reason, self.closed_at = reason, now
        self.flows.release()

    def update(self, now: float) -> None:
        pass

    update_linger = update


class Bench:
    """A client with a kernel socket, and a target behind a session. The test turns the loop by hand."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.client, client = socket.socketpair()
        self.far, near = socket.socketpair()
        self.ends = self.client, client, self.far, near
        for end in self.ends:
            end.setblocking(False)
        self.session = Session(near)
        self.owner = Owner()
        self.owner.client = client

    def begin(self) -> None:
        work = Workspace(self.loop, None)
        flows = self.flows = self.owner.flows = FlowPair(self.owner, work, self.owner.client, self.session)  # type: ignore[arg-type]
        self.up, self.down = flows.upstream, flows.downstream
        for flow in (self.up, self.down):
            flow.set_interest(READ)

    def turn(self) -> None:
        for descriptor, event in self.loop.poller.poll(0, 128):
            handler = self.loop.handlers.get(descriptor)
            if handler is not None:
                handler(event, 1.0)

    def received(self) -> bytes:
        try:
            return self.client.recv(1 << 20)
        except BlockingIOError:
            return b"nothing"

    def fill(self) -> None:
        """Let the client take no more."""
        with pytest.raises(BlockingIOError):
            while True:
                self.ends[1].send(bytes(1 << 16))

    def close(self) -> None:
        if self.owner.flows is not None and self.owner.reason is None:
            self.owner.close("closed", 0.0)
        for end in self.ends:
            end.close()
        self.loop.close()


@pytest.fixture
def bench():
    bench = Bench()
    try:
        bench.begin()
        yield bench
    finally:
        bench.close()


def test_only_the_flow_out_of_a_session_is_special(bench):
    assert isinstance(bench.down, SessionFlow)
    assert not isinstance(bench.up, SessionFlow)
    assert not bench.up.spliceable
    assert not bench.down.spliceable
    assert session_of(bench.session) is bench.session
    assert session_of(bench.client) is None


def test_what_came_with_the_handshake_is_passed_on_at_once(bench):
    bench.session.script, bench.session.ahead = [b"hello"], 1
    bench.flows.begin(1.0)
    assert bench.received() == b"hello"


def test_nothing_is_read_in_the_beginning_if_nothing_came(bench):
    bench.session.script = [b"hello"]
    bench.flows.begin(1.0)
    assert bench.received() == b"nothing"


def test_an_end_that_came_with_the_last_bytes_is_passed_on(bench):
    bench.session.script, bench.session.ahead = [b"last", END], 2
    bench.far.send(b"x")
    bench.turn()
    assert bench.received() == b"last"
    assert bench.received() == END
    assert bench.down.ended


def test_the_end_waits_until_the_client_has_taken_what_came_before_it(bench):
    bench.fill()
    bench.session.script, bench.session.ahead = [b"last", END], 2
    bench.far.send(b"x")
    bench.turn()
    assert not bench.down.ended
    assert bench.down.pending == b"last"
    while bench.received() != b"nothing":
        pass
    bench.turn()
    assert bench.down.last == 1.0
    assert bench.received() == b"last"
    assert bench.received() == END
    assert bench.down.ended


def test_bytes_in_memory_that_is_used_again_are_kept(bench):
    bench.fill()
    memory = bytearray(b"mine")
    bench.session.script = [memoryview(memory)]
    bench.far.send(b"x")
    bench.turn()
    memory[:] = b"them"
    assert bench.down.pending == b"mine"


def test_what_a_session_says_by_itself_is_sent_when_the_transport_takes_it(bench):
    session = bench.session
    session.script, session.waiting, session.takes = [b"data"], b"reply", False
    bench.far.send(b"x")
    bench.turn()
    assert bench.received() == b"data"
    assert bench.up.pending == NOTHING
    assert bench.down.mask & OUT and bench.down.mask & IN
    assert not bench.up.mask & IN, "the client is not read from: what it sends could not be sent on"
    session.takes = True
    bench.turn()
    assert session.sent == b"reply"
    assert bench.up.pending is None
    assert not bench.down.mask & OUT
    assert bench.up.mask & IN


def test_a_stalled_session_is_not_read_from(bench):
    session = bench.session
    session.script, session.waiting, session.takes, session.stalled = [b"data"], b"reply", False, True
    bench.far.send(b"x")
    bench.turn()
    assert not bench.down.mask & IN
    assert bench.down.mask & OUT
    session.script.append(b"more")
    bench.turn()
    assert session.script == [b"more"]
    session.takes = True
    bench.turn()
    assert bench.down.mask & IN
    bench.turn()
    assert session.script == []


def test_a_session_that_has_ended_is_not_read_again_once_it_has_sent_what_stalled_it(bench):
    session = bench.session
    session.script, session.waiting, session.takes, session.stalled = [END], b"reply", False, True
    bench.far.send(b"x")
    bench.turn()
    session.takes = True
    bench.turn()
    bench.turn()
    assert (session.sent, session.reads) == (b"reply", 1)


@pytest.mark.parametrize("was_stalled", [False, True])
def test_a_flow_that_a_meter_has_stopped_reads_nothing_when_the_transport_takes_more(bench, was_stalled):
    session = bench.session
    if was_stalled:
        session.script, session.waiting, session.takes, session.stalled = [b"data"], b"reply", False, True
        bench.far.send(b"x")
        bench.turn()
        session.takes = True
        bench.turn()
        session.sent = b""
    bench.down.set_interest(0)
    session.takes, session.script = False, [b"later"]
    bench.client.send(b"data")
    bench.turn()
    session.takes = True
    bench.far.send(b"x")
    bench.turn()
    bench.turn()
    assert (session.sent, session.script) == (b"data", [b"later"])


def test_a_stalled_session_sends_although_its_transport_has_hung_up(bench):
    session = bench.session
    session.waiting, session.takes, session.stalled = b"reply", False, True
    bench.client.send(b"data")
    bench.turn()
    bench.down.set_interest(-1)
    bench.down.go_on(1.0)
    session.takes = True
    bench.turn()
    assert session.sent == b"replydata"


def test_a_stalled_session_that_fails_ends_the_connection(bench):
    session = bench.session
    session.script, session.waiting, session.takes, session.stalled = [b"data"], b"reply", False, True
    bench.far.send(b"x")
    bench.turn()
    session.send = None
    session.script = [ConnectionResetError()]

    def fail(data, flags=0):
        raise BrokenPipeError

    bench.up.send = fail
    bench.turn()
    assert bench.owner.reason == "target_reset"


def test_an_end_that_the_transport_does_not_take_is_sent_later(bench):
    session = bench.session
    session.takes = False
    bench.client.shutdown(socket.SHUT_WR)
    bench.turn()
    assert session.ended
    assert session.sent == b""
    session.takes = True
    bench.turn()
    assert session.sent == b"close_notify"
    assert not bench.down.mask & OUT
    assert bench.up.pending is None
    assert not bench.up.mask & IN, "it has ended"


def test_what_the_client_sends_waits_in_order(bench):
    session = bench.session
    session.takes = False
    bench.client.send(b"one")
    bench.turn()
    assert bench.up.pending == b"one"
    bench.client.send(b"two")
    bench.turn()
    session.takes = True
    bench.turn()
    bench.turn()
    assert session.sent == b"onetwo"


def test_an_end_is_no_reason_to_wait_when_bytes_are_dropped(bench):
    bench.down.use(bench.down.discard)
    bench.session.script, bench.session.ahead = [b"too late", END], 2
    bench.far.send(b"x")
    bench.turn()
    assert (bench.owner.reason, bench.owner.closed_at) == ("done", 1.0)


def test_a_failure_of_the_session_ends_the_connection(bench):
    bench.session.script = [ConnectionResetError()]
    bench.far.send(b"x")
    bench.turn()
    assert bench.owner.reason == "target_reset"


def test_nothing_spins_once_the_transport_has_hung_up(bench):
    bench.session.script, bench.session.ahead = [b"all", END], 2
    bench.far.close()
    bench.turn()
    assert bench.received() == b"all"
    for _ in range(3):
        bench.turn()
    assert not bench.loop.poller.poll(0, 128) or bench.owner.reason is not None
    assert select.select([bench.client], [], [], 0)[0]


def hears(session):
    """Let the far end say what the session needs before it can send."""

    def recv(size, flags=0):
        session.needs, session.takes = False, True
        raise BlockingIOError

    return recv


@pytest.mark.parametrize("is_end", [False, True])
def test_nothing_spins_while_a_session_needs_input_before_it_can_send(bench, is_end):
    session = bench.session
    session.takes, session.needs = False, True
    if is_end:
        bench.client.shutdown(socket.SHUT_WR)
    else:
        bench.client.send(b"data")
    bench.turn()
    assert bench.up.pending is not None
    assert not bench.down.mask & OUT and bench.down.mask & IN
    assert not bench.loop.poller.poll(0, 128)
    bench.down.receive = hears(session)
    bench.far.send(b"x")
    for _ in range(3):
        bench.turn()
    assert session.sent == (b"close_notify" if is_end else b"data")
    assert bench.up.pending is None and not bench.down.mask & OUT


def test_a_transport_that_was_full_is_not_waited_for_once_input_is_needed(bench):
    session = bench.session
    session.takes = False
    bench.client.send(b"data")
    bench.turn()
    assert bench.down.mask & OUT
    session.needs, session.waiting = True, b"held"
    bench.turn()
    assert not bench.down.mask & OUT


def test_a_flow_that_a_meter_has_stopped_sends_once_no_input_is_needed_and_reads_nothing(bench):
    session = bench.session
    session.takes, session.needs, session.script = False, True, [b"later"]
    bench.down.set_interest(0)
    bench.client.send(b"data")
    bench.turn()
    session.takes, session.needs = True, False
    bench.down.go_on(1.0)
    bench.far.send(b"x")
    bench.turn()
    bench.turn()
    assert (session.sent, session.script) == (b"data", [b"later"])


class Metered(SessionFlow):
    """A flow that a meter stops after each piece."""

    is_parked = True


def test_what_waits_in_a_session_is_sent_although_a_meter_stops_its_flow(monkeypatch):
    monkeypatch.setattr(flow_pair, "SessionFlow", Metered)
    bench = Bench()
    try:
        bench.begin()
        bench.session.script, bench.session.ahead, bench.session.waiting = [b"one", b"two"], 2, b"reply"
        bench.far.send(b"x")
        bench.turn()
        bench.turn()
        assert (bench.session.sent, bench.received()) == (b"reply", b"onetwo")
    finally:
        bench.close()


def test_a_session_that_had_nothing_to_send_does_not_spin_once_it_needs_no_input(bench):
    bench.session.needs = True
    bench.down.set_interest(READ)
    bench.session.needs = False
    bench.down.go_on(1.0)
    assert not bench.loop.poller.poll(0, 128)


def discarding(bench):
    bench.down.use(bench.down.discard)
    bench.down.set_interest(READ)


def test_what_waits_is_sent_while_bytes_are_dropped(bench):
    session = bench.session
    session.takes, session.waiting = False, b"close_notify"
    bench.owner.client_stream = SimpleNamespace(settle=0.0, failure=None, half_close=False)
    bench.client.shutdown(socket.SHUT_WR)
    bench.turn()
    assert bench.down.handler == bench.down.discard and bench.down.mask & OUT
    session.takes = True
    bench.turn()
    assert session.sent == b"close_notify"
    assert not bench.down.mask & OUT and bench.down.mask & IN
    session.script = [END]
    bench.far.send(b"x")
    bench.turn()
    assert (bench.owner.reason, bench.owner.closed_at) == ("done", 1.0)


def test_a_stalled_session_is_not_read_from_while_bytes_are_dropped(bench):
    session = bench.session
    discarding(bench)
    session.script, session.waiting, session.takes, session.stalled = [b"one", b"two"], b"reply", False, True
    bench.far.send(b"x")
    bench.turn()
    bench.turn()
    assert session.script == [b"two"]
    session.takes = True
    bench.turn()
    bench.turn()
    assert session.script == [] and session.sent == b"reply"


def test_a_session_that_fails_while_bytes_are_dropped_ends_the_connection(bench):
    session = bench.session
    discarding(bench)
    session.waiting = b"reply"

    def fail(data, flags=0):
        raise BrokenPipeError

    session.send = fail
    bench.far.send(b"x")
    bench.turn()
    assert (bench.owner.reason, bench.owner.closed_at) == ("done", 1.0)
