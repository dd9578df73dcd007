"""Metered flows on a clock of their own: exact over ten seconds, fair, and whole, by copy and by splice."""

import contextlib
import socket

import pytest
from flow_bench import CLIENT, Bench, Reluctant, available, put, take, take_all
from helpers import BLOCK

from relay.engine.flow import BUFFER
from relay.engine.metered_flow import MeteredFlow, MeteredSessionFlow
from relay.eventloop.poller import IN, OUT, READ
from relay.streams.stream import Request

# A meter grants a sixteenth of a second at once, and two of them before it has to wait.
SLOW = {"per": "tunnel", "bandwidth": 16_000}
TURN = 1000
FREE = {"per": "tunnel", "bandwidth": 1_000_000_000}
EACH = pytest.mark.parametrize("splice", [False, True], ids=["copy", "splice"])


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


# -- over seconds -----------------------------------------------------------------------------------------------------


class Busy:
    """A client that sends what it can, and a target that reads it."""

    def __init__(self, line, total=1 << 62, sent=0):
        self.line, self.total, self.sent = line, total, sent
        self.received, self.is_whole = 0, True

    def step(self):
        with contextlib.suppress(ConnectionError):
            while self.sent < self.total:
                begin = self.sent % len(BLOCK)
                piece = BLOCK[begin : begin + min(1 << 18, self.total - self.sent)]
                if not (taken := put(self.line.client, piece)):
                    break
                self.sent += taken
        with contextlib.suppress(ConnectionError):
            while piece := take(self.line.target, 1 << 18):
                begin = self.received % len(BLOCK)
                self.is_whole = self.is_whole and piece == (BLOCK + BLOCK)[begin : begin + len(piece)]
                self.received += len(piece)


def pass_by(bench, busy, seconds, step=1 / 256):
    for one in busy:
        one.step()
    bench.pass_by(seconds, step, lambda: [one.step() for one in busy])


@pytest.mark.parametrize(
    ("count", "splice", "session"),
    [(1, False, False), (1, True, False), (1, False, True), (7, True, False), (7, False, True), (100, True, False)],
)
def test_a_shared_bandwidth_is_exact_and_fair_over_ten_seconds(stack, count, splice, session):
    rate = 2_000_000
    bench = Bench(stack, limits=[{"per": "tunnel", "bandwidth": rate}], splice=splice, family=socket.AF_INET)
    busy = [
        Busy(bench.connect(client={}, sessions={"client": b""}) if session else bench.connect()) for _ in range(count)
    ]
    pass_by(bench, busy, 10.0, step=1 / 32 if count == 100 else 1 / 128)
    received = [one.received for one in busy]
    assert sum(received) == pytest.approx(rate * 10, rel=0.05)
    assert min(received) >= rate * 10 / count / 2
    assert all(one.is_whole for one in busy)
    assert count > 1 or busy[0].line.record.engine == ("splice" if splice else "copy")


@pytest.mark.parametrize(
    ("limits", "family", "count", "received"),
    [
        # The kernel sends the first ten segments at once, and one has 64 KiB on the loopback.
        ([{"per": "connection", "bandwidth": "20kB/s"}], socket.AF_INET, 1, [80_000]),
        ([{"per": "connection", "bandwidth": "1MB/s"}], socket.AF_UNIX, 3, [4_000_000] * 3),
        (
            [{"per": "tunnel", "bandwidth": "2MB/s"}, {"per": "ip", "bandwidth": "1MB/s"}],
            socket.AF_INET,
            1,
            [4_000_000],
        ),
    ],
    ids=["slow TCP", "another kind", "the narrower of two"],
)
def test_the_bandwidth_of_each_connection_holds(stack, limits, family, count, received):
    bench = Bench(stack, limits=limits, family=family)
    busy = [Busy(bench.connect()) for _ in range(count)]
    pass_by(bench, busy, 4.0, step=1 / 64)
    assert [one.received for one in busy] == pytest.approx(received, rel=0.08)


@EACH
@pytest.mark.parametrize("session", [False, True])
def test_a_transfer_ends_whole_with_its_end_of_file(stack, splice, session):
    bench = Bench(stack, limits=[{"per": "tunnel", "bandwidth": "1MB/s"}], splice=splice, family=socket.AF_INET)
    line = bench.connect(client={}, sessions={"client": b""}) if session else bench.connect()
    busy = Busy(line, 1_500_000)
    while busy.sent < busy.total:
        pass_by(bench, [busy], 0.1)
    line.client.shutdown(socket.SHUT_WR)
    pass_by(bench, [busy], 2.0)
    assert busy.received == busy.total
    assert busy.is_whole
    assert line.record.state == "half-closed"
    line.target.shutdown(socket.SHUT_WR)
    bench.until(lambda: bench.reasons)
    assert bench.reasons == ["done"]


@pytest.mark.parametrize("session", [False, True])
def test_what_comes_with_the_request_of_a_proxy_client_counts(stack, session):
    bench = Bench(stack, limits=[{"per": "tunnel", "bandwidth": "2kB/s"}, {"name": "q", "quota": "5kB/day"}])
    request = Request("host", 1, b"", lambda reason: b"", BLOCK[:4000])
    line = bench.connect(client={} if session else None, sessions={"client": b""} if session else {}, request=request)
    busy = Busy(line, 6000, sent=4000)
    pass_by(bench, [busy], 1.5)
    assert busy.received == 4000
    pass_by(bench, [busy], 2.0)
    assert busy.received == 5000
    assert busy.is_whole
    assert bench.ends == [("quota", "limit q")]


@EACH
def test_a_quota_ends_the_connections_after_its_last_byte(stack, splice):
    bench = Bench(stack, limits=[{"name": "q", "quota": "3MB/day"}], splice=splice)
    busy = [Busy(bench.connect()) for _ in range(2)]
    for one in busy:
        one.line.up.spliceable = splice
    pass_by(bench, busy, 1.0)
    assert sum(one.received for one in busy) == 3_000_000
    assert bench.ends == [("quota", "limit q")] * 2
    assert bench.gate.enter(CLIENT, bench.now).rule == "limit q"


# -- one step ---------------------------------------------------------------------------------------------------------


def connect(bench, splice=False, moved=0, **options):
    """A connection whose flow from the client has moved some bytes, and splices from now on, or not."""
    line = bench.connect(**options)
    line.up.spliceable = splice
    if moved:
        assert pass_on(line, bytes(moved)) == moved
    if splice:
        line.up.use(line.up.splice)
    return line


def pass_on(line, data=b"", turns=1):
    """Send something, and return how much arrives in so many turns, without time passing."""
    assert put(line.client, data) == len(data)
    for _ in range(turns):
        line.bench.turn(0.0)
    return len(take_all(line.target))


@EACH
def test_a_step_moves_what_is_granted_and_a_flow_without_a_grant_is_parked_until_its_turn(stack, splice):
    bench = Bench(stack, limits=[SLOW, {"name": "q", "quota": "1MB/day"}])
    line = connect(bench, splice)
    begun = bench.now
    assert [pass_on(line, bytes(5 * TURN)), pass_on(line), pass_on(line)] == [TURN, TURN, 0]
    assert (line.moved[0], line.up.last, line.up.spliced_bytes()) == (2 * TURN, begun, 2 * TURN * splice)
    assert (line.up.mask & READ, line.down.mask & READ) == (0, READ)
    line.target.send(b"reply")
    bench.rest()
    assert take(line.client) == b"reply"
    for count in (3, 4, 5):
        bench.turn(1 / 16 + 0.002)
        assert (line.moved[0], line.up.last) == (count * TURN, bench.now)
        assert line.up.mask == line.up.reads & ~READ, "as it has read all that it might, it waits without an event"
    assert bench.work.throttled == pytest.approx(3 / 16, rel=0.2)
    bench.turn(1 / 16 + 0.002)
    assert (line.moved[0], line.up.mask & READ) == (5 * TURN, READ)
    waited = bench.work.throttled
    bench.turn(1.0)
    take_all(line.target)
    assert pass_on(line, b"x") == 1
    assert bench.work.throttled == waited


@EACH
def test_what_was_granted_and_not_read_is_given_back(stack, splice):
    bench = Bench(stack, limits=[SLOW])
    idle, line = connect(bench, splice), connect(bench)
    idle.up.handler(IN, bench.now)
    assert [pass_on(line, bytes(5 * TURN)), pass_on(line), pass_on(line)] == [TURN, TURN, 0]


@EACH
def test_other_events_ask_for_nothing(stack, splice):
    bench = Bench(stack, limits=[SLOW])
    line, other = connect(bench, splice, wrap=Reluctant), connect(bench)
    line.near.takes = [0]
    line.target.send(b"reply")
    bench.turn(0.0)
    line.up.handler(OUT, bench.now)
    assert take(line.client) == b"reply"
    assert (line.down.last, line.up.mask & OUT) == (bench.now, 0)
    assert pass_on(other, bytes(5 * TURN), turns=3) == 2 * TURN


@EACH
def test_a_read_counts_for_all_limits_and_takes_no_more_than_the_buffer_or_the_pipe(stack, splice):
    bench = Bench(stack, limits=[FREE, {"name": "q", "quota": "400kB/day"}, {"name": "r", "quota": "1MB/day"}])
    line = connect(bench, splice)
    line.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    line.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sizes = []
    line.client.send(BLOCK[:200_000])
    while sum(sizes) < 200_000:
        sizes.append(pass_on(line))
    assert sizes == ([200_000] if splice else [BUFFER] * 3 + [200_000 - 3 * BUFFER])
    line.client.send(BLOCK[:200_000])
    line.client.send(b"too much")
    bench.rest()
    assert len(take_all(line.target)) == 200_000
    assert bench.ends == [("quota", "limit q")]


@EACH
@pytest.mark.parametrize("event", ["end", "bytes", "reset"])
def test_an_end_needs_no_quota(stack, splice, event):
    bench = Bench(stack, limits=[FREE, {"name": "q", "quota": "1kB/day"}])
    line = connect(bench, splice)
    assert pass_on(line, bytes(1000)) == 1000
    if event == "end":
        line.client.shutdown(socket.SHUT_WR)
    elif event == "bytes":
        line.client.send(b"x")
    else:
        line.up.source.send(b"unread")
        line.client.close()  # which is a reset, as something was not read
    bench.turn()
    assert event != "end" or line.up.ended == bench.now
    assert bench.reasons == ([] if event == "end" else ["quota"])
    assert line.record.state == ("half-closed" if event == "end" else "closed")


@EACH
def test_the_end_comes_in_a_step_of_its_own(stack, splice):
    bench = Bench(stack, limits=[FREE])
    line = connect(bench, splice, wrap=Reluctant)
    line.client.send(b"last")
    line.client.shutdown(socket.SHUT_WR)
    bench.turn()
    assert (take(line.target), line.up.ended, line.far.flags) == (b"last", 0.0, [] if splice else [0])
    bench.turn()
    assert (take(line.target), line.up.ended) == (b"", bench.now)


def test_bulk_out_of_a_unix_socket_is_metered_as_well(stack):
    bench = Bench(stack, limits=[FREE, {"name": "q", "quota": "400kB/day"}])
    line = bench.connect()
    for end in (line.client, line.far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    line.client.send(BLOCK[:500_000])
    assert [pass_on(line) for _ in range(7)] == [BUFFER] * 6 + [400_000 - 6 * BUFFER]
    bench.rest()
    assert bench.ends == [("quota", "limit q")]


# -- when a meter grants something ------------------------------------------------------------------------------------


def parked(stack, splice=False, more=b"", limits=(), **options):
    """A connection that waits for its turn, at whose source more has come."""
    bench = Bench(stack, limits=[SLOW, *limits])
    line = connect(bench, splice, **options)
    pass_on(line, bytes(2 * TURN), turns=2)
    put(line.client, more)
    line.up.handler(IN, bench.now)
    assert not line.up.mask & READ
    return line


@EACH
def test_a_parked_flow_whose_sink_takes_too_little_waits_for_that(stack, splice):
    line = parked(stack, splice, BLOCK[:900], wrap=Reluctant)
    if splice:
        line.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        filled = 0
        while sent := put(line.up.sink.sock, bytes(500)):
            filled += sent
    else:
        line.far.takes = [2, 0]
    line.bench.turn(0.1)
    assert line.held()
    assert (line.up.mask & READ, line.down.mask & OUT) == (0, OUT)
    got = take_all(line.target)
    line.bench.rest()
    got += take_all(line.target)
    assert got[-900:] == BLOCK[:900]
    assert line.up.mask & READ


@pytest.mark.parametrize("event", ["end", "reset", "end without quota", "close"])
def test_a_parked_flow_finds_that_its_connection_has_ended(stack, caplog, event):
    """No event reports the end of a source that is not read."""
    if event == "end without quota":
        bench = Bench(stack, limits=[SLOW, {"name": "q", "quota": "2kB/day"}])
        line, other = connect(bench), connect(bench)
        pass_on(line, bytes(1500), turns=2)
        line.up.handler(IN, bench.now)
        pass_on(other, bytes(500), turns=4)
    else:
        line = parked(stack)
        bench = line.bench
    if event == "close":
        line.connection.close("killed", bench.now)
    elif event == "reset":
        line.up.source.send(b"unread")
        line.client.close()
    else:
        line.client.shutdown(socket.SHUT_WR)
    bench.turn(0.1)
    if "end" in event:
        assert (take(line.target), line.up.mask & READ, line.up.ended) == (b"", 0, bench.now)
    bench.rest()
    assert line.record.state == ("half-closed" if "end" in event else "closed")
    assert "".join(bench.reasons) == {"reset": "client_reset", "close": "killed"}.get(event, "")
    assert caplog.messages == []


def test_a_grant_that_comes_too_late_is_given_back(stack):
    line = parked(stack)
    bench, other = line.bench, connect(line.bench)
    line.client.shutdown(socket.SHUT_WR)
    line.up.end(bench.now)
    ended = line.up.ended
    bench.turn(0.1)
    assert (line.up.ended, line.up.mask & READ) == (ended, 0)
    assert pass_on(other, bytes(5 * TURN)) == TURN


@pytest.mark.parametrize("is_exhausted", [False, True])
def test_a_parked_flow_that_has_to_wait_again_is_not_watched(stack, is_exhausted):
    bench = Bench(stack, limits=[SLOW])
    line, other = connect(bench), connect(bench)
    pass_on(line, bytes(TURN if is_exhausted else 500))
    pass_on(other, bytes(5 * TURN), turns=3)
    line.client.send(bytes(100))
    line.up.handler(IN, bench.now)
    line.up.granted(bench.now)
    assert (available(line.up.source), line.up.mask & READ) == (100, 0)
    bench.turn(0.2)
    assert available(line.up.source) == 0


@pytest.mark.parametrize("mask", [-1, OUT])
def test_a_parked_flow_keeps_waiting_for_what_else_it_waited_for(stack, mask):
    line = parked(stack, more=b"bytes")
    line.up.set_interest(mask)
    line.bench.now += 0.1
    line.bench.loop.timers.run(line.bench.now)
    assert take(line.target) == b"bytes"
    assert line.up.mask == max(mask, 0) | line.up.reads


def test_a_flow_whose_bytes_are_dropped_from_now_on_leaves_its_meters(stack):
    bench = Bench(stack, limits=[SLOW, {"name": "q", "quota": "5kB/day"}])
    line = connect(bench, target={"half_close": False})
    pass_on(line, bytes(2500), turns=3)
    line.target.send(b"bye")
    line.target.shutdown(socket.SHUT_WR)
    bench.rest()
    assert (take_all(line.client), line.record.state) == (b"bye", "half-closed")
    line.client.send(bytes(100_000))
    bench.rest()
    assert (available(line.up.source), line.moved[0], bench.reasons) == (0, 2 * TURN, [])
    assert line.up.handler == line.up.discard
    line.client.shutdown(socket.SHUT_WR)
    bench.rest()
    assert bench.reasons == ["done"]


@pytest.mark.parametrize("session", [False, True])
def test_a_parked_flow_that_is_closed_leaves_nothing_behind(stack, session):
    bench = Bench(stack, limits=[SLOW])
    line = bench.connect(client={} if session else None, sessions={"client": b""} if session else {})
    assert type(line.up) is (MeteredSessionFlow if session else MeteredFlow)
    pass_on(line, bytes(3 * TURN), turns=3)
    assert bench.loop.timers.first < float("inf")
    up = line.up
    line.connection.close("killed", bench.now)
    assert bench.loop.timers.first == float("inf")
    assert not hasattr(up, "receive")
    other = connect(bench)
    bench.turn(1.0)
    assert pass_on(other, bytes(5 * TURN), turns=3) == 2 * TURN


def test_what_came_before_a_reset_is_passed_on_and_counted_whatever_is_granted(stack):
    bench = Bench(stack, limits=[SLOW, {"name": "q", "quota": "5kB/day"}])
    line = connect(bench, moved=500)
    line.client.send(bytes(4500))
    line.down.sink_failed(bench.now)
    assert (len(take_all(line.target)), line.moved, bench.reasons) == (4500, (5000, 0), ["client_reset"])
    assert bench.gate.enter(CLIENT, bench.now).rule == "limit q"


# -- out of a session -------------------------------------------------------------------------------------------------


def test_what_a_session_has_read_ahead_is_metered(stack):
    bench = Bench(stack, limits=[SLOW])
    line = bench.connect(client={}, sessions={"client": BLOCK[:5000]})
    assert len(take_all(line.target)) == 2 * TURN
    bench.rest()
    for _ in range(3):
        bench.turn(1 / 16 + 0.002)
        bench.turn(0.0)
    assert line.moved[0] == 5000


def test_a_look_at_the_transport_does_not_tell_whether_a_session_has_ended(stack):
    bench = Bench(stack, limits=[{"name": "q", "quota": "1kB/day"}])
    line = bench.connect(client={}, sessions={"client": bytes(1000)})
    line.client.shutdown(socket.SHUT_WR)
    bench.rest()
    assert bench.ends == [("quota", "limit q")]
