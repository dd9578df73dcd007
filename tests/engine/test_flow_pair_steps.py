"""A pair of flows, and each end and error alone: its sockets, its streams and its time are the test's."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
from flow_parts import GONE, LoopRecord, Pipes, Sock

import relay
from relay.engine import flow_pair as module
from relay.engine.flow import WATCHED, Flow
from relay.engine.flow_pair import FlowPair
from relay.engine.records import ConnectionState
from relay.engine.session_flow import NOTHING, SessionFlow
from relay.engine.workspace import Workspace
from relay.eventloop.loop import Timers
from relay.eventloop.poller import IN, OUT, READ
from relay.streams.session_socket import SessionSocket

LOST = relay.CarrierError("i2p: gone")


class End(Sock):
    """A socket that records its end."""

    getpeername = getsockname = setsockopt = None

    def __init__(self, descriptor, family):
        super().__init__(descriptor, family)
        self.shutdowns = []
        self.cannot_end = None

    def shutdown(self, how):
        if self.cannot_end is not None:
            raise self.cannot_end
        self.shutdowns.append(how)


class Session(SessionSocket):
    """A session whose bytes and whose end are those of the socket below it."""

    must_flush = needs_input = is_stalled = False

    def __init__(self, transport):
        super().__init__(transport)
        self.transport = transport
        self.is_ahead = False  # no event announces what it has

    @property
    def has_input(self):
        return self.is_ahead and bool(self.transport.gives)

    def recv(self, size, flags=0):
        return self.transport.recv(size, flags)

    def send(self, data, flags=0):
        return self.transport.send(data, flags)

    def shutdown(self, how):
        self.transport.shutdown(how)


class Stream:
    """The stream of a transport, as its pair of flows sees it."""

    def __init__(self, half_close=True, answered=True, settle=0.0, failure=None, queued=0):
        self.half_close = half_close
        self.answered = answered
        self.settle = settle
        self.failure = failure
        self.queued = lambda: queued

    def __repr__(self):
        return "<a stream>"


class Connected:
    """An open connection: its ends, its flows, and what happened to it."""

    tunnel_name = "web"

    def __init__(
        self,
        client_stream=None,
        target_stream=None,
        *,
        client_session=False,
        target_session=False,
        family=socket.AF_INET,
    ):
        self.near, self.far = End(5, family), End(6, family)
        self.client = Session(self.near) if client_session else self.near
        self.target = Session(self.far) if target_session else self.far
        self.client_stream, self.target_stream = client_stream, target_stream
        self.state = ConnectionState.OPEN
        self.summary = SimpleNamespace(peer="a client", target_name=lambda: "the target")
        self.ticket = None
        self.closes = []
        self.looks = []
        self.deadline = SimpleNamespace(
            update=lambda now: self.looks.append(("all", now)),
            update_linger=lambda now: self.looks.append(("linger", now)),
        )
        self.loop, self.timers = LoopRecord(), Timers()
        self.loop.timers = self.timers
        work = Workspace(self.loop, Pipes())
        self.flows = FlowPair(self, work, self.client, self.target)
        self.up, self.down = self.flows.upstream, self.flows.downstream
        self.up.set_interest(WATCHED)
        self.down.set_interest(WATCHED)

    def close(self, reason, now):
        if not self.flows.is_closed:
            self.closes.append((reason, now))
            self.flows.release()

    @property
    def masks(self):
        return self.loop.masks.get(5), self.loop.masks.get(6)


# -- the flows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client_session", [False, True])
@pytest.mark.parametrize("target_session", [False, True])
@pytest.mark.parametrize("streams", [False, True])
def test_each_direction_has_the_flow_of_its_source(client_session, target_session, streams):
    streams = streams or client_session or target_session
    one = Connected(*([Stream()] * 2 if streams else ()), client_session=client_session, target_session=target_session)
    assert type(one.up) is (SessionFlow if client_session else Flow)
    assert type(one.down) is (SessionFlow if target_session else Flow)
    assert (one.up.owner, one.up.source, one.up.sink) == (one.flows, one.client, one.target)
    assert (one.down.owner, one.down.source, one.down.sink) == (one.flows, one.target, one.client)
    assert (one.up.reverse, one.down.reverse) == (one.down, one.up)
    assert one.up.work is one.down.work
    spliceable = False if client_session or target_session else None
    assert (one.up.spliceable, one.down.spliceable) == (spliceable, spliceable)
    assert not one.flows.is_closed


@pytest.mark.parametrize("streams", [(Stream(), None), (None, Stream())])
def test_one_side_with_a_session_is_enough(streams):
    one = Connected(*streams, client_session=streams[0] is not None, target_session=streams[1] is not None)
    assert [type(flow) for flow in (one.up, one.down)] == [SessionFlow if stream else Flow for stream in streams]
    assert (one.up.spliceable, one.down.spliceable) == (False, False)


def begun(one):
    """Begin, and return the directions that move bytes, in order."""
    done = []
    for name, flow in (("up", one.up), ("down", one.down)):
        if isinstance(flow, SessionFlow):
            flow.session.transport.gives = [name.encode()]
            flow.session.is_ahead = True
    one.near.on_send = lambda: done.append("down")
    one.far.on_send = lambda: done.append("up")
    one.flows.begin(4.0)
    return done


@pytest.mark.parametrize(
    ("client", "target", "done"),
    [(True, True, ["down", "up"]), (True, False, ["up"]), (False, True, ["down"]), (False, False, [])],
)
def test_what_sessions_have_already_is_moved_first_that_of_the_target(client, target, done):
    one = Connected(Stream(), Stream(), client_session=client, target_session=target)
    assert begun(one) == done
    assert (one.up.last, one.down.last) == (4.0 if "up" in done else 0.0, 4.0 if "down" in done else 0.0)


def test_a_connection_that_ends_when_it_begins_moves_no_more():
    one = Connected(Stream(), Stream(), client_session=True, target_session=True)
    one.near.takes = [GONE]
    assert begun(one) == ["down", "up"], "what the client said before its reset"
    assert one.closes == [("client_reset", 4.0)]


@pytest.mark.parametrize("client_stream", [None, Stream()])
@pytest.mark.parametrize("target_stream", [None, Stream()])
def test_released_flows_close_only_sockets_that_no_transport_made(client_stream, target_stream):
    one = Connected(client_stream, target_stream)
    one.flows.release()
    assert one.loop.forgotten == [(5, client_stream is None), (6, target_stream is None)]
    assert (one.flows.upstream, one.flows.downstream, one.flows.is_closed) == (None, None, True)


def test_a_flow_ends_the_connection():
    one = Connected()
    one.flows.close("done", 4.0)
    assert one.closes == [("done", 4.0)]


@pytest.mark.parametrize(
    ("client_stream", "target_stream", "expected"),
    [
        (None, None, (50, 60)),
        (Stream(queued=7), None, (7, 60)),
        (None, Stream(queued=8), (50, 8)),
        (Stream(queued=7), Stream(queued=8), (7, 8)),
    ],
)
def test_the_bytes_that_have_not_left_are_those_of_the_stream_or_else_of_the_socket(
    monkeypatch, client_stream, target_stream, expected
):
    monkeypatch.setattr(module, "unsent", lambda sock: sock.fileno() * 10)
    assert Connected(client_stream, target_stream).flows.unsent() == expected


# -- an end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize("streams", [(), (Stream(), Stream())])
def test_an_end_is_passed_on_and_lingers(side, streams):
    one = Connected(*streams)
    flow, sink = (one.up, one.far) if side == "client" else (one.down, one.near)
    flow.end(4.0)
    assert (sink.shutdowns, one.closes) == ([socket.SHUT_WR], [])
    assert (one.state, one.looks) == (ConnectionState.HALF_CLOSED, [("linger", 4.0)])
    assert (flow.ended, flow.mask, flow.reverse.mask) == (4.0, 0, WATCHED)


@pytest.mark.parametrize("streams", [(), (Stream(), Stream()), (Stream(half_close=False), Stream(half_close=False))])
def test_the_end_of_both_directions_ends_the_connection(streams):
    one = Connected(*streams)
    one.down.ended = 3.0
    one.up.end(4.0)
    assert (one.closes, one.far.shutdowns) == ([("done", 4.0)], [])


@pytest.mark.parametrize("side", ["client", "target"])
def test_an_end_is_held_back_from_a_stream_without_half_close(side):
    whole, half = Stream(half_close=False), Stream()
    one = Connected(half, whole) if side == "client" else Connected(whole, half)
    flow = one.up if side == "client" else one.down
    flow.end(4.0)
    assert (flow.sink.shutdowns, one.closes) == ([], [])
    assert (one.state, one.looks) == (ConnectionState.HALF_CLOSED, [("all", 4.0)])


@pytest.mark.parametrize("descriptor", [6, 0])
def test_a_sink_that_was_reset_leaves_the_flow_that_reads_from_it_to_see_that(descriptor):
    one = Connected()
    one.far.cannot_end = GONE
    one.far.descriptor = descriptor
    one.up.end(4.0)
    assert (one.closes, one.looks) == ([], [("linger", 4.0)])


@pytest.mark.parametrize("side", ["client", "target"])
def test_a_sink_that_other_code_has_closed_ends_the_connection(side):
    one = Connected()
    closed, flow = (one.near, one.down) if side == "client" else (one.far, one.up)
    closed.cannot_end = OSError(9, "Bad file descriptor")
    closed.descriptor = -1
    flow.end(4.0)
    assert (one.closes, one.looks) == ([(f"{side}_reset", 4.0)], [])


@pytest.mark.parametrize("must_flush", [True, False])
def test_a_session_that_keeps_a_part_of_its_end_is_flushed(must_flush):
    one = Connected(None, Stream(), target_session=True)
    one.target.must_flush = must_flush
    one.up.end(4.0)
    assert one.up.pending is (NOTHING if must_flush else None)
    assert one.looks == [("linger", 4.0)]


@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize("failure", [LOST, ValueError("a failure without a reason")])
def test_an_end_that_was_a_failure_is_one(side, failure):
    streams = [Stream(), Stream()]
    streams[side == "target"].failure = lambda: failure
    one = Connected(*streams)
    (one.up if side == "client" else one.down).end(4.0)
    assert one.closes == [("carrier_lost" if failure is LOST else f"{side}_reset", 4.0)]


@pytest.mark.parametrize("side", ["client", "target"])
def test_an_end_that_was_none_is_passed_on(side):
    one = Connected(Stream(failure=lambda: None), Stream(failure=lambda: None))
    (one.up if side == "client" else one.down).end(4.0)
    assert one.closes == []


def test_a_failure_that_raises_is_one(caplog):
    def failure():
        raise ZeroDivisionError("a bug")

    one = Connected(None, Stream(failure=failure))
    one.down.end(4.0)
    assert one.closes == [("target_reset", 4.0)]
    assert caplog.records[0].getMessage() == "<a stream>: its failure() raised, which counts as one"
    assert "ZeroDivisionError: a bug" in caplog.text


@pytest.mark.parametrize("half_close", [True, False])
@pytest.mark.parametrize(("answered", "moved"), [(False, 0), (False, 1), (True, 0)])
def test_the_end_of_a_target_that_has_not_answered_is_nobody_there(caplog, half_close, answered, moved):
    one = Connected(None, Stream(half_close, answered))
    one.down.moved = moved
    one.down.end(4.0)
    assert (one.closes == [("unreachable", 4.0)]) == (not answered and not moved)
    text = "web: the target: closed before sending any data; check that the service is running (client a client)"
    assert (text in caplog.text) == (not answered and not moved)


def test_the_end_of_a_client_tells_nothing_of_its_target():
    one = Connected(Stream(), Stream(answered=False))
    one.up.end(4.0)
    assert (one.closes, one.far.shutdowns) == ([], [socket.SHUT_WR])


def test_a_client_that_has_not_answered_is_no_target():
    one = Connected(Stream(answered=False), None)
    one.down.end(4.0)
    assert one.closes == []
    one.flows.on_socket_error(one.target, 5.0)
    assert one.closes == [("target_reset", 5.0)]


# -- the end of a stream without half-close ----------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "target"])
def test_what_comes_for_a_stream_that_has_ended_is_dropped(side):
    whole, half = Stream(half_close=False), Stream()
    one = Connected(whole, half) if side == "client" else Connected(half, whole)
    flow = one.up if side == "client" else one.down
    flow.reverse.queue(memoryview(b"kept"))
    flow.end(4.0)
    assert (one.state, one.looks, one.closes) == (ConnectionState.DISCARDING, [("all", 4.0)], [])
    assert flow.sink.shutdowns == [socket.SHUT_WR]
    assert (flow.mask, flow.reverse.mask) == (-1, READ)
    assert (flow.reverse.pending, flow.reverse.handler) == (None, flow.reverse.discard)


def test_a_peer_that_has_gone_when_its_stream_ends_is_done():
    one = Connected(None, Stream(half_close=False))
    one.near.cannot_end = GONE
    one.down.end(4.0)
    assert (one.closes, one.looks) == ([("done", 4.0)], [])


@pytest.mark.parametrize("must_flush", [True, False])
def test_a_session_that_keeps_a_part_of_its_end_while_the_rest_is_dropped_waits_to_write(must_flush):
    one = Connected(Stream(), Stream(half_close=False), client_session=True)
    one.client.must_flush = must_flush
    one.down.end(4.0)
    assert one.up.mask == (READ | OUT if must_flush else READ)


# -- an error ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize("streams", [(), (Stream(), Stream())])
def test_an_error_is_a_reset_of_its_side(side, streams):
    one = Connected(*streams)
    one.flows.on_socket_error(one.client if side == "client" else one.target, 4.0)
    assert one.closes == [(f"{side}_reset", 4.0)]


@pytest.mark.parametrize("side", ["client", "target"])
def test_an_error_has_the_reason_that_its_stream_knows(caplog, side):
    streams = [Stream(failure=lambda: ValueError("not this one")), Stream(failure=lambda: ValueError("nor this"))]
    streams[side == "target"].failure = lambda: LOST
    one = Connected(*streams)
    one.flows.on_socket_error(one.client if side == "client" else one.target, 4.0)
    assert (one.closes, caplog.text) == ([("carrier_lost", 4.0)], "")


def test_a_target_that_was_not_reached_after_all_is_logged(caplog):
    refused = relay.ConnectError("db:1: refused" + "!" * 1000, reason="refused")
    one = Connected(None, Stream(failure=lambda: refused, answered=False))
    one.flows.on_socket_error(one.target, 4.0)
    assert one.closes == [("refused", 4.0)]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("web: db:1: refused!!!") and line.endswith(" (client a client)")
    assert 480 < line.count("!") < 500


def test_the_failure_of_a_target_may_have_any_text(caplog):
    refused = relay.ConnectError("db:1:\nrefused", reason="refused")
    one = Connected(None, Stream(failure=lambda: refused))
    one.flows.on_socket_error(one.target, 4.0)
    assert "web: db:1:\\nrefused (client a client)" in caplog.text


def test_an_error_of_a_target_that_has_not_answered_is_nobody_there():
    one = Connected(None, Stream(answered=False))
    one.flows.on_socket_error(one.target, 4.0)
    assert one.closes == [("unreachable", 4.0)]


def test_an_error_of_a_client_tells_nothing_of_its_target():
    one = Connected(None, Stream(answered=False))
    one.flows.on_socket_error(one.client, 4.0)
    assert one.closes == [("client_reset", 4.0)]


# -- ends whose cause is known later -----------------------------------------------------------------------------------


class Fate:
    """The failure of a stream, which shows late."""

    def __init__(self):
        self.error = None
        self.asked = 0

    def __call__(self):
        self.asked += 1
        return self.error


@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize("error", [None, LOST])
def test_an_end_whose_cause_is_known_later_waits_for_it(side, error):
    fate = Fate()
    streams = [Stream(), Stream()]
    settling = streams[side == "target"]
    settling.settle, settling.failure = 0.25, fate
    one = Connected(*streams)
    flow = one.up if side == "client" else one.down
    flow.end(4.0)
    assert (one.state, one.closes, flow.ended, fate.asked) == (ConnectionState.OPEN, [], 0.0, 0)
    assert (settling.settle, flow.mask) == (-1.0, 0)
    one.timers.run(4.2)
    assert (settling.settle, fate.asked) == (-1.0, 0)
    fate.error = error
    one.timers.run(4.3)
    assert settling.settle == 0.0
    if error is None:
        assert (one.state, flow.ended, one.closes) == (ConnectionState.HALF_CLOSED, 4.3, [])
    else:
        assert one.closes == [("carrier_lost", 4.3)]


@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize("error", [None, LOST])
def test_an_error_whose_cause_is_known_later_waits_for_it_and_nothing_is_read(side, error):
    fate = Fate()
    streams = [Stream(), Stream()]
    settling = streams[side == "target"]
    settling.settle, settling.failure = 0.25, fate
    one = Connected(*streams)
    one.flows.on_socket_error(one.client if side == "client" else one.target, 4.0)
    assert (one.closes, one.masks, fate.asked) == ([], (None, None), 0)
    assert (one.up.mask, one.down.mask) == (-1, -1)
    fate.error = error
    one.timers.run(4.3)
    assert one.closes == [("carrier_lost" if error else f"{side}_reset", 4.3)]


def test_only_the_first_end_waits():
    one = Connected(None, Stream(settle=0.25))
    one.down.end(4.0)
    one.flows.on_socket_error(one.target, 4.1)
    one.down.end(4.2)
    assert one.closes == []
    one.timers.run(4.3)
    assert (one.state, one.down.ended) == (ConnectionState.HALF_CLOSED, 4.3)
    one.timers.run(9.0)
    assert (one.closes, one.down.ended) == ([], 4.3)


@pytest.mark.parametrize("settle", [0.25, 3.0])
def test_the_wait_is_as_long_as_the_stream_says(settle):
    one = Connected(None, Stream(settle=settle))
    one.down.end(4.0)
    one.timers.run(4.0 + settle - 0.02)
    assert one.state is ConnectionState.OPEN
    one.timers.run(4.0 + settle + 0.02)
    assert one.state is ConnectionState.HALF_CLOSED


def test_a_connection_that_has_ended_meanwhile_waits_for_no_cause(caplog):
    stream = Stream(settle=0.25)
    one = Connected(None, stream)
    one.down.end(4.0)
    one.close("client_reset", 4.1)
    one.timers.run(4.3)
    assert (one.closes, stream.settle, caplog.text) == ([("client_reset", 4.1)], 0.0, "")


# -- the end with the last bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "target", "up", "down"),
    [
        (None, None, True, True),
        (Stream(), Stream(), True, True),
        (Stream(half_close=False), Stream(), True, False),
        (Stream(), Stream(half_close=False), False, True),
        (None, Stream(half_close=False), False, True),
        (Stream(half_close=False), None, True, False),
        (Stream(settle=1.0), Stream(), False, True),
        (Stream(), Stream(settle=1.0), True, False),
        (Stream(settle=1.0), None, False, True),
        (None, Stream(settle=-1.0), True, False),
    ],
)
def test_an_end_is_passed_on_with_the_last_bytes_if_it_is_passed_on_at_once(client, target, up, down):
    one = Connected(client, target)
    assert (one.flows.passes_end_of(one.up), one.flows.passes_end_of(one.down)) == (up, down)


@pytest.mark.parametrize(
    ("streams", "sessions", "family", "up", "down"),
    [
        ((), {}, socket.AF_INET, True, True),
        ((), {}, socket.AF_INET6, True, True),
        ((), {}, socket.AF_UNIX, False, False),
        ((Stream(), Stream()), {}, socket.AF_INET, True, True),
        ((Stream(half_close=False), Stream()), {}, socket.AF_INET, True, False),
        ((None, Stream(half_close=False)), {}, socket.AF_INET, False, True),
        ((Stream(), None), {"client_session": True}, socket.AF_INET, True, False),
        ((None, Stream()), {"target_session": True}, socket.AF_INET, False, True),
    ],
)
def test_urgent_data_is_for_tcp_up_to_the_peer(streams, sessions, family, up, down):
    one = Connected(*streams, family=family, **sessions)
    assert (one.flows.takes_urgent(one.up), one.flows.takes_urgent(one.down)) == (up, down)


def test_a_flow_asks_its_pair():
    one = Connected()
    one.near.gives = [b"last", b""]
    one.up.copy(IN | READ, 4.0)
    assert (one.far.sent, one.far.shutdowns) == ([b"last"], [socket.SHUT_WR])
