"""Whatever the chunking, short writes, would-blocks and ends: what comes out is what went in, in order, and bounded."""

import contextlib
import errno
import fcntl
import os
import random
import select
import socket
import sys
from types import SimpleNamespace

import pytest
from flow_bench import Bench, Reluctant, available, put, take, take_all
from helpers import BLOCK, WAIT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.engine import bulk_pairs
from relay.engine.flow import BUFFER, Flow
from relay.engine.workspace import Workspace
from relay.eventloop.background import BUFFER as WIDE
from relay.eventloop.loop import Loop
from relay.eventloop.pipes import SIZE, PipePool
from relay.eventloop.poller import ERR, HUP, IN, OUT, PRI, READ
from relay.eventloop.sockets import reset
from relay.streams.stream import Request
from relay.testing import pair

GONE = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
WITHOUT_HALF_CLOSE = {"half_close": False}
FREE = {"per": "tunnel", "bandwidth": 1_000_000_000}


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(params=["plain", "metered"])
def bench(stack, request):
    """Flows of a client without limits, and those of one whose bandwidth never makes it wait."""
    return Bench(stack, limits=[FREE] if request.param == "metered" else [])


def as_tcp(line):
    """Let both flows splice, as out of TCP; a Unix socket has what was sent at once, and in one piece."""
    line.up.spliceable = line.down.spliceable = True
    return line


@pytest.fixture
def line(bench):
    return as_tcp(bench.connect())


@pytest.fixture
def reluctant(bench):
    """A line whose sockets take what the test says."""
    return as_tcp(bench.connect(wrap=Reluctant))


def pass_on(line, data, turns=1):
    """Send something in one piece, and return what arrives in so many turns."""
    assert line.client.send(data) == len(data)
    for _ in range(turns):
        line.bench.turn()
    return take_all(line.target)


# -- any schedule -----------------------------------------------------------------------------------------------------


class Moody(Reluctant):
    """A socket that gives and takes what it likes: less than it could, and at times nothing."""

    chance = random.Random(0)
    most = 1 << 30  # bytes that it takes at once

    def recv(self, size):
        if self.chance.random() < 0.2:
            raise BlockingIOError
        return self.sock.recv(self.chance.choice([1, 7, size, size]))

    def send(self, data, flags=0):
        if self.chance.random() < 0.2:
            raise BlockingIOError
        return self.sock.send(data[: self.chance.randint(1, max(1, min(len(data), self.most)))], flags)


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
@pytest.mark.parametrize("bulk", [True, False], ids=["bulk first", "adaptive"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(plan=steps, seed=st.integers(0, 1 << 30))
def test_what_comes_out_is_what_went_in(splice, bulk, plan, seed):
    with contextlib.ExitStack() as stack:
        if bulk:  # also for the loop, where a single transfer would be none
            stack.enter_context(pytest.MonkeyPatch.context()).setattr(bulk_pairs, "FEW", 0)
        bench = Bench(stack, splice=splice)
        Moody.chance = random.Random(seed)
        line = bench.connect(wrap=Moody)
        for end in (line.client, line.near, line.far, line.target):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        for flow in (line.up, line.down):
            flow.spliceable = splice
            if splice and bulk:
                flow.use(flow.splice)
        play(line, plan)


def play(line, plan):
    ends = {"client": line.client, "target": line.target}
    sent = {"client": bytearray(), "target": bytearray()}
    received = {"client": bytearray(), "target": bytearray()}
    over = {"client": False, "target": False}

    def check():
        """Each byte is in one place, and counted if the far end has it."""
        if line.connection.is_closed:
            return
        for flow, sender, receiver in ((line.up, "client", "target"), (line.down, "target", "client")):
            arrived = len(received[receiver]) + available(ends[receiver])
            assert flow.moved == arrived
            held = len(flow.pending or b"") + flow.piped
            assert held <= max(BUFFER, SIZE)
            assert len(sent[sender]) == arrived + held + available(flow.source)
            assert 0 <= flow.spliced_bytes() <= arrived

    for action, side, amount in plan:
        if action == "send" and not over[side]:
            place = len(sent[side]) % 99_991
            data = BLOCK[place : place + amount]
            sent[side] += data[: put(ends[side], data)]
        elif action == "receive":
            received[side] += take(ends[side], amount) or b""
        elif action == "end" and not over[side]:
            over[side] = True
            ends[side].shutdown(socket.SHUT_WR)
        elif action == "chop":
            line.near.most = amount
        elif action == "turn":
            for _ in range(amount):
                line.bench.turn()
                check()
    for side in ("client", "target"):
        if not over[side]:
            ends[side].shutdown(socket.SHUT_WR)
    finished = {"client": False, "target": False}
    for _ in range(100_000):
        line.bench.turn()
        check()
        for side in ("client", "target"):
            data = take(ends[side])
            received[side] += data or b""
            finished[side] |= data == b""
        if all(finished.values()) and line.connection.is_closed:
            break
    assert line.bench.reasons == ["done"]
    assert received == {"client": sent["target"], "target": sent["client"]}
    assert (line.record.received, line.record.sent) == (len(sent["client"]), len(sent["target"]))


# -- copying ----------------------------------------------------------------------------------------------------------


def test_bytes_are_counted_before_their_receiver_has_them(reluctant):
    seen = []
    reluctant.far.before_send = lambda: seen.append((*reluctant.moved, reluctant.up.last))
    bench = reluctant.bench
    assert (reluctant.moved, reluctant.up.first, reluctant.up.last, reluctant.up.ended) == ((0, 0), 0.0, 0.0, 0.0)
    times = []
    for data in (b"one", b"three"):
        assert pass_on(reluctant, data) == data
        times.append(bench.now)
    assert seen == [(3, 0, times[0]), (8, 0, times[1])]
    assert (reluctant.up.first, reluctant.up.last) == tuple(times)
    assert reluctant.record.engine == "copy"


@pytest.mark.parametrize("is_last", [False, True], ids=["more follows", "the end follows"])
@pytest.mark.parametrize("taken", [2, 0])
def test_what_the_sink_does_not_take_waits_and_nothing_more_is_read(reluctant, taken, is_last):
    bench = reluctant.bench
    assert pass_on(reluctant, b"one") == b"one"
    reluctant.far.takes = [taken, 0, 3]
    reluctant.client.send(b"rest of it")
    if is_last:
        reluctant.client.shutdown(socket.SHUT_WR)
    left = b"rest of it"[taken:]
    bench.turn()
    came = bench.now
    assert (reluctant.moved, reluctant.up.last, bytes(reluctant.up.pending)) == ((3 + taken, 0), came, left)
    if not is_last:
        reluctant.client.send(b"later")
    bench.turn()
    assert (reluctant.moved, reluctant.up.last) == ((3 + taken, 0), came)
    bench.turn()
    assert (reluctant.moved, reluctant.up.last, bytes(reluctant.up.pending)) == ((6 + taken, 0), bench.now, left[3:])
    assert available(reluctant.near) == (0 if is_last else 5)
    assert not reluctant.up.ended
    bench.rest()
    assert take_all(reluctant.target) == b"rest of it" + (b"" if is_last else b"later")
    assert bool(reluctant.up.ended) == is_last
    assert reluctant.record.state == ("half-closed" if is_last else "open")


@pytest.mark.parametrize("splice", [True, False], ids=["splice", "copy"])
def test_both_directions_may_wait_at_once(bench, splice):
    line = as_tcp(bench.connect())
    sent = {}
    for end, flow in ((line.client, line.up), (line.target, line.down)):
        if splice:
            flow.use(flow.splice)
        sent[end] = 0
        while (taken := put(end, BLOCK[sent[end] :])) or bench.turn():
            sent[end] += taken
    bench.rest()
    assert put(line.client, b"more") == put(line.target, b"more") == 0, "the pressure does not reach the senders"
    line.client.shutdown(socket.SHUT_WR)
    bench.rest()
    for end, source in ((line.target, line.client), (line.client, line.target)):
        got = bytearray()
        while data := take(end):
            got += data
            bench.turn()
        assert bytes(got) == BLOCK[: sent[source]]
    assert pass_back(line, b"still") == b"still"
    line.target.close()
    bench.rest()
    assert bench.reasons == ["done"]


def pass_back(line, data):
    """Send something from the target, and return what arrives in one turn."""
    assert line.target.send(data) == len(data)
    line.bench.turn()
    return take_all(line.client)


def test_events_of_one_turn_are_all_handled(reluctant):
    reluctant.near.takes = [0]
    reluctant.target.send(b"reply")
    reluctant.bench.turn()
    reluctant.client.send(b"request")
    reluctant.bench.turn()
    assert (take_all(reluctant.client), take_all(reluctant.target)) == (b"reply", b"request")
    assert reluctant.up.last == reluctant.down.last == reluctant.bench.now
    assert reluctant.far.flags == [0]


def test_what_came_before_the_flow_is_written_first(bench):
    early = Request("host", 1, b"", lambda reason: b"", b"early")
    line = bench.connect(request=early)
    assert line.up.first == 0.0
    assert pass_on(line, b"later", turns=2) == b"earlylater"
    assert line.moved == (10, 0)


def test_memory_that_is_used_again_is_copied_and_other_memory_is_not(reluctant):
    memory, constant = bytearray(b"session"), memoryview(b"constant")
    reluctant.up.queue(memoryview(memory))
    memory[:] = b"changed"
    assert reluctant.up.pending == b"session"
    reluctant.up.queue(constant)
    assert reluctant.up.pending is constant


def test_a_direction_that_has_ended_is_not_read_again_when_the_other_one_waits(reluctant):
    reluctant.target.shutdown(socket.SHUT_WR)
    reluctant.bench.turn()
    ended = reluctant.down.ended
    reluctant.far.takes = [0]
    assert pass_on(reluctant, b"request", turns=3) == b"request"
    assert (reluctant.down.ended, reluctant.down.mask) == (ended, 0)


def test_a_flow_that_has_nothing_to_write_after_all_reads_again(line):
    line.up.block()
    assert pass_on(line, b"request", turns=2) == b"request"
    assert (line.moved, line.down.mask) == ((7, 0), line.down.reads)


@pytest.mark.parametrize(("event", "is_read"), [(0, False), (OUT, False), (ERR, True), (HUP, True), (IN | HUP, True)])
def test_bytes_are_read_at_events_of_their_source_only(line, event, is_read):
    line.up.set_interest(IN)  # as where an end is no event of its own
    line.client.send(b"request")
    line.up.on_other_event(event, line.bench.now)
    assert take(line.target) == (b"request" if is_read else None)


def test_an_event_of_the_source_does_not_wake_the_flow_to_it(line):
    line.down.set_interest(0)  # as by a meter
    line.client.send(b"request")
    line.client.shutdown(socket.SHUT_WR)
    line.bench.turn()
    assert (take(line.target), line.down.mask) == (b"request", 0)


def test_another_handler_is_used_when_the_flow_is_watched_for_events_again(line):
    line.up.set_interest(0)
    line.up.use(line.up.splice)
    line.up.set_interest(line.up.reads)
    assert pass_on(line, b"spliced") == b"spliced"
    assert line.up.spliced_bytes() == 7


def test_a_connection_that_ends_as_its_reply_is_written_reads_no_more(reluctant):
    reluctant.near.takes = [0, GONE]
    reluctant.target.send(b"reply")
    reluctant.bench.turn()
    reluctant.client.send(b"request")
    reluctant.bench.rest()
    assert (reluctant.bench.reasons, reluctant.moved) == (["client_reset"], (7, 0)), "what it said before is passed on"


@pytest.mark.parametrize("first", [b"small", bytes(40_000)], ids=["small", "bulk"])
@pytest.mark.parametrize("taken", [None, 0, 2])
def test_the_time_of_the_first_byte_stays(reluctant, first, taken):
    bench = reluctant.bench
    if taken is not None:
        reluctant.near.takes = [taken]
    assert reluctant.record.first_byte is None
    reluctant.target.send(first)
    bench.turn()
    came = bench.now
    assert reluctant.record.first_byte == came - 1000.0
    for _ in range(3):
        bench.turn(5.0)
        take_all(reluctant.client)
        reluctant.near.takes = [taken] if taken is not None else []
        reluctant.target.send(first)
        bench.turn(5.0)
    assert reluctant.record.first_byte == came - 1000.0
    assert (reluctant.down.first, reluctant.down.last) == (came, bench.now)


def test_what_waits_in_a_session_is_no_first_byte(bench):
    line = bench.connect(target={}, sessions={"target": b""})
    line.far.waiting = b"hello"
    line.target.send(b"x")
    bench.rest()
    assert (take(line.target), line.up.first, line.up.last) == (b"hello", 0.0, 0.0)
    pass_on(line, b"first")
    came = bench.now
    pass_on(line, b"second")
    assert (line.up.first, line.up.last) == (came, bench.now)


# -- bulk -------------------------------------------------------------------------------------------------------------

LARGE, SMALL = 32_768, 100


@pytest.mark.parametrize(
    ("sizes", "splices"),
    [
        ([LARGE, LARGE], False),
        ([LARGE] * 3, True),
        ([65_483] * 3, True),  # the window of one of a thousand streams, so that no read of it fills the buffer
        ([LARGE, LARGE, SMALL, LARGE, LARGE], False),
        ([SMALL, LARGE, LARGE, LARGE], True),
        ([LARGE, SMALL, LARGE, LARGE], False),
        ([LARGE - 1] * 5, False),
        ([BUFFER] * 3 + [16_384] * 9, True),
        ([BUFFER] * 3 + [16_383] * 7, True),
        ([BUFFER] * 3 + [16_383] * 8, False),
        ([BUFFER] * 3 + [10] * 7 + [20_000] + [10] * 7, True),
        ([BUFFER] * 3 + [20_000] + [10] * 8, False),
        ([BUFFER] * 3 + [10] * 8 + [BUFFER] * 2, False),
        ([BUFFER] * 3 + [10] * 8 + [BUFFER] * 3, True),
    ],
)
def test_large_pieces_in_a_row_are_spliced_and_small_ones_copied_again(line, sizes, splices):
    counts = []
    for size in sizes:
        was = line.up.spliced_bytes()
        assert pass_on(line, BLOCK[:size]) == BLOCK[:size]
        counts.append(line.up.spliced_bytes() - was)
        assert counts[-1] in (0, size)
    assert line.moved == (sum(sizes), 0)
    assert line.connection.bytes_moved()[2:] == (sum(counts), 0)
    assert line.record.engine == ("splice" if any(counts) else "copy")
    assert pass_on(line, b"x") == b"x"
    assert line.up.spliced_bytes() - sum(counts) == (1 if splices else 0)
    counts = line.connection.bytes_moved()
    line.connection.close("killed", line.bench.now)
    assert line.connection.bytes_moved() == counts


@pytest.mark.parametrize(("takes", "count"), [([LARGE, 1], 4), ([1], 4)])
def test_what_waits_counts_for_no_row_of_large_pieces_and_ends_none(reluctant, takes, count):
    reluctant.far.takes = list(takes)
    for _ in range(count - 1):
        pass_on(reluctant, BLOCK[:LARGE], turns=3)
    assert reluctant.up.handler == reluctant.up.copy
    pass_on(reluctant, BLOCK[:LARGE])
    assert reluctant.up.handler == reluctant.up.splice


def test_a_flow_that_is_about_to_splice_has_copied(line):
    for _ in range(3):
        pass_on(line, BLOCK[:BUFFER])
    assert (line.up.handler, line.up.spliced_bytes(), line.record.engine) == (line.up.splice, 0, "copy")
    line.connection.close("killed", line.bench.now)
    assert line.record.engine == "copy"


@pytest.mark.parametrize(("family", "splices"), [(socket.AF_INET, True), (socket.AF_UNIX, False)])
@pytest.mark.parametrize("has_pipes", [True, False])
def test_what_comes_out_of_a_unix_socket_is_copied(family, splices, has_pipes):
    loop, pipes = Loop(), PipePool()
    source, far = pair(family)
    with source, far:
        flow = Flow(None, Workspace(loop, pipes if has_pipes else None), source, far)
        assert flow.can_splice() is (splices and has_pipes)
    pipes.close()
    loop.close()


@pytest.mark.parametrize(
    ("size", "next_size"), [(BUFFER, WIDE), (BUFFER - 1, BUFFER), (LARGE, BUFFER)], ids=["full", "nearly", "half"]
)
def test_after_bulk_that_fills_the_buffer_a_step_takes_more_out_of_a_unix_socket(stack, size, next_size):
    line = Bench(stack).connect()
    for _ in range(3):
        assert pass_on(line, BLOCK[:size]) == BLOCK[:size]
    for end in (line.client, line.far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    assert len(pass_on(line, BLOCK[:300_000])) == next_size
    assert line.record.engine == "copy"


def test_bulk_out_of_unix_sockets_that_a_target_did_not_take_is_not_that_of_the_next_connection(stack):
    bench = Bench(stack)
    slow, other = lines = bench.connect(), bench.connect()
    for line in lines:
        for _ in range(3):
            assert pass_on(line, BLOCK[:BUFFER]) == BLOCK[:BUFFER]
    for end in (slow.client, other.client, other.far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    put(slow.client, BLOCK[:300_000])
    bench.turn()
    assert slow.held()
    assert pass_on(other, bytes(WIDE)) == bytes(WIDE)
    received = bytearray()
    bench.until(lambda: received.extend(take(slow.target) or b"") or len(received) == 300_000)
    assert received == BLOCK[:300_000]


def in_bulk(line):
    """Return whether the loop handles the events of both sockets with those of bulk transfers."""
    (is_bulk,) = {end.fileno() in line.bench.loop.bulk for end in (line.near, line.far)}
    return is_bulk


@pytest.mark.parametrize("splice", [True, False], ids=["splice", "copy"])
@pytest.mark.parametrize(
    ("sizes", "is_bulk"),
    [
        ([LARGE] * 3, False),
        ([LARGE] * 4, True),
        ([LARGE] * 3 + [SMALL, LARGE], False),
        ([LARGE] * 6, True),
        ([LARGE] * 6 + [SMALL], False),
        ([LARGE] * 6 + [SMALL] + [LARGE] * 4, True),
    ],
)
def test_a_connection_is_a_bulk_transfer_after_four_large_turns_until_a_small_one(
    bench, monkeypatch, splice, sizes, is_bulk
):
    monkeypatch.setattr(bulk_pairs, "FEW", 0)
    line = bench.connect()
    line.up.spliceable = splice
    for size in sizes:
        assert pass_on(line, BLOCK[:size]) == BLOCK[:size]
    assert in_bulk(line) is is_bulk


@pytest.mark.parametrize("way", ["down", "up"])
def test_small_answers_to_a_bulk_transfer_leave_it_one(bench, monkeypatch, way):
    monkeypatch.setattr(bulk_pairs, "FEW", 0)
    line = bench.connect()
    for _ in range(5):
        if way == "up":
            assert pass_on(line, BLOCK[:LARGE]) == BLOCK[:LARGE]
            assert pass_back(line, b"answer") == b"answer"
        else:
            assert pass_back(line, BLOCK[:LARGE]) == BLOCK[:LARGE]
            assert pass_on(line, b"answer") == b"answer"
    assert in_bulk(line)


@pytest.mark.parametrize("event", ["no pipe", "refused"])
def test_where_a_splice_cannot_be_the_same_bytes_are_copied(line, monkeypatch, event):
    line.up.use(line.up.splice)
    if event == "no pipe":
        monkeypatch.setattr(PipePool, "make", lambda pool: None)
    else:
        monkeypatch.setattr(os, "splice", refuse)
    for _ in range(5):
        assert pass_on(line, BLOCK[:BUFFER]) == BLOCK[:BUFFER]
        assert line.up.last == line.bench.now
    assert line.moved == (5 * BUFFER, 0)
    assert (line.up.spliceable, line.down.spliceable) == (event == "no pipe", True)


def refuse(*args, **options):
    raise OSError(errno.EINVAL, "Invalid argument")


@pytest.fixture
def splicing(line):
    """A line whose flow from the client splices, after it has copied 50 bytes."""
    assert pass_on(line, bytes(50)) == bytes(50)
    line.up.use(line.up.splice)
    return line


def test_spliced_bytes_are_counted_before_their_receiver_has_them(splicing, monkeypatch):
    seen, splice = [], os.splice
    monkeypatch.setattr(
        os, "splice", lambda *args: (seen.append((splicing.moved[0], splicing.up.last)), splice(*args))[1]
    )
    before = splicing.bench.now
    assert len(pass_on(splicing, bytes(20_000))) == 20_000
    assert seen == [(50, before), (20_050, splicing.bench.now)]
    assert len(pass_on(splicing, bytes(20_000))) == 20_000
    assert splicing.up.spliced_bytes() == 40_000
    assert len(splicing.bench.pipes.idle) == 1


def test_what_the_sink_does_not_take_stays_in_a_pipe_of_its_own(splicing):
    bench, other = splicing.bench, as_tcp(splicing.bench.connect())
    other.up.use(other.up.splice)
    splicing.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    splicing.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    splicing.client.send(BLOCK[:200_000])
    bench.turn()
    came = bench.now
    held, arrived = splicing.up.piped, available(splicing.target)
    assert held > 0
    assert arrived > 0
    assert (splicing.moved[0], splicing.up.last, splicing.up.spliced_bytes()) == (50 + arrived, came, arrived)
    assert bench.pipes.idle == []
    assert pass_on(other, BLOCK[:50_000]) == BLOCK[:50_000]
    bench.rest()
    assert (splicing.up.last, splicing.up.piped) == (came, held)
    got = bytearray()
    while held:
        got += take_all(splicing.target)
        bench.turn()
        assert splicing.up.last == bench.now
        assert splicing.up.piped == max(0, held - available(splicing.target))
        held = splicing.up.piped
        assert len(got) + available(splicing.target) == splicing.moved[0] - 50
    assert splicing.up.pipe is None
    bench.rest()
    assert len(bench.pipes.idle) == 2
    while len(got) < 200_000:
        got += take_all(splicing.target)
        bench.turn()
    assert bytes(got) == BLOCK[:200_000]
    assert splicing.up.spliced_bytes() == 200_000


# -- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("splice", [True, False], ids=["splice", "copy"])
@pytest.mark.parametrize("data", [b"request", b"", BLOCK[:100_000]], ids=["small", "nothing", "two buffers"])
def test_the_end_travels_behind_the_bytes(line, splice, data):
    bench = line.bench
    if splice:
        line.up.use(line.up.splice)
    for end in (line.client, line.far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    line.client.send(data)
    line.client.shutdown(socket.SHUT_WR)
    bench.turn()
    if len(data) < BUFFER:
        assert take_all(line.target) == data
    bench.rest()
    assert (take_all(line.target), take(line.target)) == (data if len(data) > BUFFER else b"", b"")
    assert line.record.state == "half-closed"
    assert line.up.spliced_bytes() == (len(data) if splice else 0)
    assert pass_back(line, b"reply") == b"reply"
    line.target.close()
    bench.rest()
    assert take(line.client) == b""
    assert bench.reasons == ["done"]
    assert line.record.received == len(data)


@pytest.mark.skipif(not hasattr(socket, "MSG_MORE"), reason="this machine sends each piece at once")
@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize("half_close", [True, False])
def test_the_last_bytes_wait_for_the_end_only_if_it_is_passed_on(stack, side, half_close):
    bench = Bench(stack)
    stream = {"target" if side == "client" else "client": {"half_close": half_close}}
    line = bench.connect(wrap=Reluctant, **stream)
    ends = (line.client, line.up, line.far, line.target), (line.target, line.down, line.near, line.client)
    end, flow, sink, other = ends[side == "target"]
    end.send(b"one")
    bench.turn()
    end.send(b"last")
    end.shutdown(socket.SHUT_WR)
    bench.turn()
    assert sink.flags == [0, socket.MSG_MORE if half_close else 0]
    assert take_all(other) == b"onelast"
    assert flow.ended == bench.now


def test_a_hang_up_that_nothing_waits_for_does_not_spin(line):
    sent = 0
    while (taken := put(line.client, BLOCK[sent : sent + 3000])) or line.bench.turn():
        sent += taken
    line.client.close()  # all of it is still to be delivered, and the hang-up is reported without end
    line.bench.rest()
    got = bytearray()
    while data := take(line.target):
        got += data
        line.bench.turn()
    assert bytes(got) == BLOCK[:sent]


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("splice", [True, False], ids=["splice", "copy"])
@pytest.mark.parametrize("event", ["nothing", "end", "reset"])
def test_what_a_read_finds_is_handled_whatever_the_event_was(line, splice, event):
    bench = line.bench
    if splice:
        line.up.use(line.up.splice)
    if event == "reset":
        line.near.send(b"unread")
        line.client.close()
    elif event == "end":
        line.client.shutdown(socket.SHUT_WR)
    line.up.handler(IN, bench.now)
    assert bench.reasons == (["client_reset"] if event == "reset" else [])
    assert line.record.state == {"nothing": "open", "end": "half-closed", "reset": "closed"}[event]
    assert event != "end" or line.up.ended == bench.now


@pytest.mark.parametrize("how", ["copy", "the end", "splice", "drain"])
def test_a_sink_that_fails_has_taken_nothing_and_what_it_said_is_passed_on(reluctant, how):
    bench = reluctant.bench
    assert pass_on(reluctant, b"one") == b"one"
    usage = PipePool.usage()[0]
    if how == "splice":
        reluctant.up.use(reluctant.up.splice)
        reluctant.target.shutdown(socket.SHUT_RD)
    else:
        reluctant.far.takes = [0, GONE] if how == "drain" else [GONE]
    reluctant.down.set_interest(0)  # its loop is late
    reluctant.target.send(b"413 too large")
    reluctant.client.send(b"more")
    if how == "the end":
        reluctant.client.shutdown(socket.SHUT_WR)
    while not bench.reasons:
        bench.turn()
    assert (bench.reasons, reluctant.moved) == (["target_reset"], (3, 13))
    assert take_all(reluctant.client) == b"413 too large"
    assert PipePool.usage()[0] == usage


@pytest.mark.parametrize(
    ("said", "passed"),
    [([b"413", b" too", b" large"], b"413 too large"), ([b"said", GONE, b"never"], b"said"), ([b"x"] * 20, b"x" * 16)],
    ids=["all", "an error", "no more than sixteen buffers"],
)
def test_of_what_was_said_before_a_reset_sixteen_pieces_are_passed_on(bench, said, passed):
    pieces = iter([*said, BlockingIOError()])

    class Pieces(Reluctant):
        def recv(self, size):
            piece = next(pieces)
            if isinstance(piece, OSError):
                raise piece
            return piece

    line = bench.connect(wrap=Pieces)
    line.up.sink_failed(bench.now)
    assert bench.reasons == ["target_reset"]
    assert take_all(line.client) == passed
    assert line.moved == (0, len(passed))


def test_what_was_said_before_a_reset_is_dropped_if_it_is_not_taken_at_once(reluctant):
    reluctant.near.takes = [2]
    reluctant.target.send(b"said")
    reluctant.up.sink_failed(reluctant.bench.now)
    assert (take_all(reluctant.client), reluctant.moved) == (b"sa", (0, 2))


@pytest.mark.parametrize("before", ["waits", "has ended"])
def test_nothing_is_passed_on_before_what_waits_or_after_the_end(reluctant, before):
    bench = reluctant.bench
    if before == "waits":
        reluctant.near.takes = [0, 0]
        reluctant.target.send(b"first")
    else:
        reluctant.target.shutdown(socket.SHUT_WR)
    bench.turn()
    reads = []
    reluctant.down.reader = SimpleNamespace(recv=lambda size: reads.append(size) or b"")
    reluctant.up.sink_failed(bench.now)
    assert (bench.reasons, reads) == (["target_reset"], [])


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_reset_of_a_source_that_is_not_read_ends_the_connection_after_the_bytes_that_are_left(bench, family):
    """The kernel has dropped those of TCP."""
    line, sent = bench.connect(family), 0
    while (taken := put(line.client, BLOCK[sent % len(BLOCK) :])) or bench.turn():
        sent += taken
    line.target.send(b"unread")
    bench.until(lambda: available(line.client))
    line.client.close()  # which is a reset, because it has not read all
    if family == socket.AF_UNIX:
        bench.rest()
        assert bench.reasons == []
        while bench.turn() or not bench.reasons:
            take_all(line.target)
        assert line.moved[0] == sent
    bench.until(lambda: bench.reasons)
    assert bench.reasons == ["client_reset"]


def test_a_bug_ends_the_connection(line):
    line.up.crashed(line.bench.now)
    assert line.bench.reasons == ["factory_error"]


# -- urgent data ------------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="this machine has no urgent data that comes in line")


def send_with_mark(line, before=b"", after=b""):
    """Send an urgent byte between others, and wait until they are all there."""
    line.client.send(before)
    line.client.send(b"!", socket.MSG_OOB)
    line.client.send(after)
    poller = select.poll()
    poller.register(line.up.source.fileno(), select.POLLPRI)
    assert poller.poll(WAIT * 1000)


def receive_with_marks(line, size):
    """Receive so many bytes, each alone; return them, and the places of urgent ones."""
    data, marks = b"", []
    line.target.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    while len(data) < size:
        line.bench.until(lambda: available(line.target))
        marks += [len(data)] if any(fcntl.ioctl(line.target, 0x8905, bytes(4))) else []  # SIOCATMARK
        data += take(line.target, 1) or b""
    return data, marks


@linux
@pytest.mark.parametrize("splice", [True, False], ids=["splice", "copy"])
@pytest.mark.parametrize("before", [b"before", b""])
@pytest.mark.parametrize("waits", [0, 1, 2])
def test_an_urgent_byte_comes_alone_and_at_its_place(bench, splice, before, waits):
    line = bench.connect(socket.AF_INET, wrap=Reluctant)
    line.target.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    if splice:
        line.up.use(line.up.splice)
    send_with_mark(line, before, b"after")
    if before:
        bench.until(lambda: line.moved[0])
        assert (line.moved, line.up.last) == ((len(before), 0), bench.now)
    line.far.takes = [0] * waits
    assert receive_with_marks(line, len(before) + 6) == (before + b"!after", [len(before)])
    assert line.far.flags == [0] * bool(before) + [socket.MSG_OOB, 0], "what is after it is read at once again"
    assert (line.moved[0], line.up.handler, bench.reasons) == (len(before) + 6, line.up.copy, [])
    send_with_mark(line)
    bench.turn()
    assert (line.moved[0], line.up.last) == (len(before) + 7, bench.now)


@linux
@pytest.mark.parametrize("cause", ["the sink has none", "the mark is not known", "it was closed"])
def test_an_urgent_byte_is_plain_or_left_to_the_next_read(bench, monkeypatch, cause):
    line = bench.connect(
        socket.AF_INET, target=WITHOUT_HALF_CLOSE if cause == "the sink has none" else None, wrap=Reluctant
    )
    if cause == "the mark is not known":
        monkeypatch.setattr(fcntl, "ioctl", refuse)
    send_with_mark(line, b"", b"after")
    if cause == "it was closed":
        bench.loop.forget(line.near.fileno())
        line.near.close()
        line.up.copy(IN | PRI, bench.now)
        assert bench.reasons == ["client_reset"]
        return
    while line.moved[0] < 6:
        bench.turn()
    assert (set(line.far.flags), line.up.last) == ({0}, bench.now)


@linux
@pytest.mark.parametrize("event", ["bytes", "reset"])
def test_a_flow_that_does_not_read_keeps_urgent_data_in_line(bench, event):
    """The kernel drops an urgent byte when another one comes."""
    line = bench.connect(socket.AF_INET)
    line.up.set_interest(PRI)
    send_with_mark(line, b"1")
    bench.rest()
    assert (line.moved, line.up.mask) == ((0, 0), 0)
    if event == "reset":
        reset(line.client)
        bench.until(lambda: bench.reasons)
        assert bench.reasons == ["client_reset"]
    else:
        send_with_mark(line, b"2")
        line.up.set_interest(line.up.reads)
        assert receive_with_marks(line, 4)[0] == b"1!2!"


@linux
@pytest.mark.parametrize("event", [PRI, PRI | IN])
def test_what_a_unix_peer_sends_out_of_band_is_no_data(line, event):
    line.client.send(b"after")
    line.up.copy(event, line.bench.now)
    assert take(line.target) == (b"after" if event & IN else None)
    assert (line.up.mask, line.up.last) == (READ, line.bench.now if event & IN else 0.0)
    line.up.block()
    line.bench.turn()
    assert line.up.mask == READ


# -- a stream without half-close that has ended ------------------------------------------------------------------------


@pytest.mark.parametrize("splice", [True, False], ids=["splice", "copy"])
@pytest.mark.parametrize("end", ["end of file", "reset"])
def test_what_a_stream_without_half_close_did_not_take_is_dropped_at_its_end(bench, splice, end):
    usage = PipePool.usage()[0]
    line = as_tcp(bench.connect(target=WITHOUT_HALF_CLOSE))
    if splice:
        line.up.use(line.up.splice)
    line.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    while put(line.client, BLOCK) or bench.turn():
        pass
    moved = line.moved[0]
    assert line.held()
    line.target.send(b"early reply")
    line.target.shutdown(socket.SHUT_WR)
    bench.rest()
    assert (line.held(), PipePool.usage()[0]) == (0, usage)
    assert (take_all(line.client), take(line.client)) == (b"early reply", b"")
    assert put(line.client, BLOCK) > 0, "it is read and dropped"
    bench.rest()
    assert (available(line.near), bench.reasons, line.moved[0]) == (0, [], moved)
    line.target.close()
    line.client.close() if end == "end of file" else reset(line.client)
    bench.rest()
    assert bench.reasons == ["done"]


# -- what the loop watches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["bytes", "full", "bulk", "close", "end"])
def test_another_socket_with_the_number_of_one_that_was_closed_is_left_alone(line, event):
    """Other code may close a socket that a factory has returned, and open another one."""
    bench, number = line.bench, line.near.fileno()
    if event == "full":
        line.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        while put(line.target, BLOCK) or bench.turn():
            pass
    bench.loop.forget(number)
    line.near.close()
    other, end = socket.socketpair()
    with end, socket.socket(fileno=os.dup2(other.detach(), number)) as other:
        seen = []
        bench.loop.watch(number, IN, lambda *given: seen.append(given))
        put(line.target, b"reply")
        if event == "end":
            line.target.shutdown(socket.SHUT_WR)
        elif event == "bulk":
            line.up.use(line.up.splice)
        elif event == "close":
            line.connection.close("killed", bench.now)
        else:
            line.up.set_interest(0 if event == "full" else -1)
        bench.rest()
        assert seen == []
        end.send(b"x")
        bench.turn()
        assert seen == [(IN, bench.now)]
        line.connection.close("killed", bench.now)
        assert number in bench.loop.handlers
        bench.loop.forget(number)
