"""A flow out of a session: it copies what no event announces, and sends what waits in the session."""

import contextlib
import socket

import pytest
from flow_bench import Bench, put, take, take_all
from helpers import BLOCK

from relay.eventloop.poller import IN, OUT, READ


@pytest.fixture
def bench():
    with contextlib.ExitStack() as stack:
        yield Bench(stack)


@pytest.fixture
def line(bench):
    """A connection whose target has a session."""
    return connect(bench)


def connect(bench, held=b"", client=None):
    return bench.connect(target={}, client=client, sessions={"target": held})


def come(line, data=b"x", turns=1):
    """Let the transport bring something, and turn."""
    line.target.send(data)
    for _ in range(turns):
        line.bench.turn()


def stalled(line, waiting=b"reply"):
    """Let the session read nothing before it has sent this, which its transport does not take."""
    line.far.waiting, line.far.takes, line.far.stalls = waiting, False, True
    come(line, b"data")
    return line


@pytest.mark.parametrize("held", [b"", b"hello"])
def test_what_came_with_the_handshake_is_passed_on_at_once(bench, held):
    line = connect(bench, held)
    assert (take_all(line.client), line.far.reads, line.down.mask) == (held, 1 if held else 0, READ)


def test_bulk_that_one_read_has_brought_is_passed_on_in_one_turn(bench):
    line = connect(bench, BLOCK[:200_000])
    line.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    got = take_all(line.client)
    while bench.turn():
        got += take_all(line.client)
    assert got == BLOCK[:200_000]


@pytest.mark.parametrize("is_full", [False, True])
def test_an_end_that_came_with_the_last_bytes_is_passed_on_behind_them(line, is_full):
    if is_full:
        while put(line.near, bytes(1 << 16)):
            pass
    line.far.is_over, line.far.held = True, b"last"
    come(line)
    if is_full:
        assert (line.down.ended, line.down.pending) == (0.0, b"last")
        line.far.memory[:4] = b"next"
        take_all(line.client)
        line.bench.turn()
        assert line.down.last == line.bench.now
    assert take_all(line.client) == b"last"
    assert line.down.ended == line.bench.now
    line.bench.rest()


def test_what_a_session_says_by_itself_is_sent_when_its_transport_takes_it(line):
    line.far.waiting, line.far.takes = b"reply", False
    come(line, b"data")
    assert take(line.client) == b"data"
    line.client.send(b"later")
    line.bench.turn()
    assert (line.moved[0], line.down.mask & (IN | OUT)) == (0, IN | OUT), "what it sent could not be sent on"
    line.far.takes = True
    line.bench.turn()
    assert take_all(line.target) == b"reply"
    line.bench.rest()
    assert take_all(line.target) == b"later"


def test_a_stalled_session_is_not_read_from_until_it_has_sent(line):
    stalled(line)
    assert take(line.client) == b"data"
    come(line, b"more", turns=3)
    assert (take(line.client), line.down.mask & (IN | OUT)) == (None, OUT)
    line.far.takes = True
    line.bench.rest()
    assert (take_all(line.target), take(line.client)) == (b"reply", b"more")


def test_a_session_that_has_ended_is_not_read_again_once_it_has_sent_what_stalled_it(line):
    line.far.is_over = True
    stalled(line)
    reads = line.far.reads
    line.far.takes = True
    line.bench.rest()
    assert (take_all(line.target), line.far.reads) == (b"reply", reads)


@pytest.mark.parametrize("was", ["stalled", "full", "in need of input"])
def test_a_flow_that_a_meter_has_stopped_sends_and_reads_nothing(line, was):
    session = line.far
    if was == "stalled":
        stalled(line)
        session.takes = True
        line.bench.rest()
        take_all(line.target)
    line.down.set_interest(0)
    session.takes, session.needs = False, was == "in need of input"
    reads = session.reads
    line.client.send(b"data")
    line.bench.turn()
    session.takes, session.needs = True, False
    if was == "in need of input":
        line.down.go_on(line.bench.now)
    come(line, turns=2)
    assert (take_all(line.target), session.reads) == (b"data", reads)


def test_a_stalled_session_sends_although_its_transport_has_hung_up(line):
    line.far.waiting, line.far.takes, line.far.stalls = b"reply", False, True
    line.client.send(b"data")
    line.bench.turn()
    line.down.set_interest(-1)
    line.down.go_on(line.bench.now)
    line.far.takes = True
    line.bench.turn()
    assert take_all(line.target) == b"replydata"


@pytest.mark.parametrize("event", ["read", "stalled", "drop"])
def test_a_session_that_fails_ends_the_connection(line, event):
    if event == "stalled":
        stalled(line)
    elif event == "drop":
        dropping(line)
        line.far.waiting = b"reply"
    line.far.fails = ConnectionResetError()
    come(line)
    assert line.bench.reasons == ["done" if event == "drop" else "target_reset"]


@pytest.mark.parametrize("is_end", [False, True])
@pytest.mark.parametrize("needs", [False, True])
def test_what_the_transport_does_not_take_is_sent_in_order_when_it_does(line, is_end, needs):
    """Until a session that needs input has got it, it costs nothing that the transport would take more."""
    session = line.far
    session.takes, session.needs = False, needs
    line.client.shutdown(socket.SHUT_WR) if is_end else line.client.send(b"one")
    line.bench.turn()
    assert line.up.pending == (b"" if is_end else b"one")
    if needs:
        line.bench.rest()
        assert line.down.mask & (IN | OUT) == IN
    if not is_end:
        line.client.send(b"two")
    if needs:
        come(line, turns=3)
    session.takes = True
    line.bench.rest()
    assert take_all(line.target) == (b"close_notify" if is_end else b"onetwo")
    assert (line.up.pending, line.down.mask & OUT, line.up.mask & IN) == (None, 0, 0 if is_end else IN)


def test_a_transport_that_was_full_is_not_waited_for_once_input_is_needed(line):
    line.far.takes = False
    line.client.send(b"data")
    line.bench.turn()
    assert line.down.mask & OUT
    line.far.needs, line.far.waiting = True, b"held"
    line.bench.rest()


def test_a_session_that_had_nothing_to_send_does_not_spin_once_it_needs_no_input(line):
    line.far.needs = True
    line.down.set_interest(READ)
    line.far.needs = False
    line.down.go_on(line.bench.now)
    assert line.down.mask == READ
    line.bench.rest()


def test_what_waits_in_a_session_is_sent_although_a_meter_stops_its_flow(bench):
    bench = Bench(bench.stack, limits=[{"per": "tunnel", "bandwidth": 16_000}])
    line = connect(bench)
    line.far.held, line.far.waiting = bytes(10_000), b"reply"
    come(line, turns=2)
    assert (take_all(line.target), len(take_all(line.client))) == (b"reply", 2000)


def test_no_event_is_left_once_the_transport_has_hung_up(line):
    line.far.held, line.far.is_over = b"all", True
    line.target.close()
    line.bench.rest()
    assert (take(line.client), take(line.client)) == (b"all", b"")


# -- while bytes are dropped ------------------------------------------------------------------------------------------


def dropping(line):
    line.down.use(line.down.discard)
    line.down.set_interest(READ)


def test_an_end_is_found_behind_the_bytes_that_are_dropped(line):
    dropping(line)
    line.far.held, line.far.is_over = b"too late", True
    come(line)
    assert line.bench.reasons == ["done"]


def test_what_waits_is_sent_while_bytes_are_dropped(bench):
    line = connect(bench, client={"half_close": False})
    line.far.takes = False
    line.client.shutdown(socket.SHUT_WR)
    bench.turn()
    assert line.down.handler == line.down.discard
    bench.turn()
    assert (line.far.reads, line.down.mask & OUT) == (0, OUT)
    line.far.takes = True
    bench.rest()
    assert take_all(line.target) == b"close_notify"
    come(line)
    assert (bench.reasons, line.moved) == ([], (0, 0))
    line.target.close()
    bench.rest()
    assert bench.reasons == ["done"]


def test_a_stalled_session_is_not_read_from_while_bytes_are_dropped(line):
    dropping(line)
    stalled(line)
    come(line, b"more", turns=2)
    assert (reads := line.far.reads) == 1
    assert line.down.mask == OUT
    line.far.takes = True
    line.bench.rest()
    assert (take_all(line.target), line.far.reads > reads, line.moved) == (b"reply", True, (0, 0))
