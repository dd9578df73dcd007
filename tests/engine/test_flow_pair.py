"""``relay.engine.flow_pair``: what an EOF or an error of one stream does to the other one, and to the connection."""

import contextlib
import select
import socket

import pytest
from flow_bench import Bench, Reluctant, Session, available, put, take, take_all
from helpers import BLOCK, WAIT

import relay
from relay.engine.flow import Flow
from relay.engine.session_flow import SessionFlow
from relay.eventloop.sockets import reset

WHOLE, HALF = {"half_close": False}, {}  # streams; one that is None is a plain socket
SILENT = {"answered": False}
LOST = relay.CarrierError("i2p: gone")
REFUSED = relay.ConnectError("db:1:\nrefused" + "!" * 1000, reason="refused")


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def bench(stack):
    return Bench(stack)


class Fate:
    """The cause of a stream's end, which shows late."""

    def __init__(self):
        self.error, self.asked = None, 0

    def __call__(self):
        self.asked += 1
        return self.error


def connect(bench, side="client", own=None, other=None, **options):
    """A connection whose stream at this side is its own one; returns it, and the far ends of both streams."""
    streams = {"client": own, "target": other} if side == "client" else {"client": other, "target": own}
    line = bench.connect(**streams, **options)
    return line, *((line.client, line.target) if side == "client" else (line.target, line.client))


def exchange(line, end, other):
    end.send(b"ping")
    other.send(b"pong")
    line.bench.rest()
    assert (take(other), take(end)) == (b"ping", b"pong")


# -- the flows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize("target", [False, True])
def test_what_sessions_have_read_ahead_is_moved_at_once_first_that_of_the_target(bench, client, target):
    sessions = ({"client": b"up"} if client else {}) | ({"target": b"down"} if target else {})
    order, send = [], Session.send
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "send", lambda to, data, flags=0: order.append(bytes(data)) or send(to, data, flags))
        line = bench.connect(client=HALF if client else None, target=HALF if target else None, sessions=sessions)
    assert (take(line.target), take(line.client)) == (b"up" if client else None, b"down" if target else None)
    assert order == ([b"down", b"up"] if client and target else [])
    assert (line.up.last, line.down.last) == (bench.now * client, bench.now * target)
    assert [type(flow) for flow in (line.up, line.down)] == [SessionFlow if kind else Flow for kind in (client, target)]
    assert line.up.spliceable is line.down.spliceable is (False if client or target else None)
    exchange(line, line.client, line.target)


def test_a_connection_that_ends_when_it_begins_moves_no_more(bench):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "send", gone)
        bench.connect(client=HALF, target=HALF, sessions={"client": b"", "target": b"down"})
    assert bench.reasons == ["client_reset"]


@pytest.mark.parametrize("client", [None, {"unsent": lambda: 1000}])
@pytest.mark.parametrize("target", [None, {"unsent": lambda: 2000}])
def test_the_bytes_that_have_not_left_are_those_of_the_streams(bench, client, target):
    line = bench.connect(client=client, target=target)
    line.near.send(b"1234567")
    line.far.send(b"12345")
    plain = [available(line.client) and line.connection.flows.unsent()[0] % 1000]
    up, down = line.connection.flows.unsent()
    assert (up // 1000 * 1000, down // 1000 * 1000) == (1000 if client else 0, 2000 if target else 0)
    assert plain[0] >= 7


# -- an end -----------------------------------------------------------------------------------------------------------

STREAMS = [(None, None), (HALF, HALF), (HALF, None), (None, HALF)]


@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize(("own", "other"), STREAMS)
@pytest.mark.parametrize("linger", [0.5, None])
def test_an_end_is_passed_on_and_lingers(stack, side, own, other, linger):
    bench = Bench(stack, times=(None, None, None, linger))
    line, end, far = connect(bench, side, own, other)
    end.shutdown(socket.SHUT_WR)
    bench.rest()
    assert take(far) == b""
    assert line.record.state == "half-closed"
    far.send(b"still")
    bench.turn(0.3)
    assert take(end) == b"still"
    bench.turn(0.4)
    assert bench.reasons == []
    bench.turn(0.2)
    assert bench.reasons == ([] if linger is None else ["linger"])


@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize(("own", "other"), [*STREAMS, (WHOLE, WHOLE), (WHOLE, HALF), (HALF, WHOLE)])
def test_the_ends_of_both_directions_end_the_connection(bench, side, own, other):
    line, end, far = connect(bench, side, own, other)
    exchange(line, end, far)
    end.shutdown(socket.SHUT_WR)
    bench.rest()
    assert line.record.state == "half-closed"
    far.shutdown(socket.SHUT_WR)
    bench.rest()
    assert (bench.reasons, line.record.by) == (["done"], side)
    assert all(clean for _, clean in bench.closed)


@pytest.mark.parametrize("side", ["client", "target"])
def test_an_end_is_held_back_from_a_stream_without_half_close(stack, side):
    bench = Bench(stack, times=(None, None, None, 0.5))
    line, end, far = connect(bench, side, HALF, WHOLE)
    exchange(line, end, far)
    end.shutdown(socket.SHUT_WR)
    bench.rest()
    assert (take(far), line.record.state) == (None, "half-closed")
    bench.turn(0.6)
    assert bench.reasons == ["linger"]


@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize("linger", [0.5, None])
def test_what_comes_for_a_stream_without_half_close_that_has_ended_is_dropped(stack, side, linger):
    bench = Bench(stack, times=(None, None, None, linger))
    line, end, far = connect(bench, side, WHOLE, HALF)
    while put(far, BLOCK) or bench.turn():
        pass
    assert line.held()
    end.shutdown(socket.SHUT_WR)
    bench.rest()
    assert (line.held(), line.record.state, take(far)) == (0, "half-closed", b"")
    assert put(far, BLOCK)
    bench.rest()
    assert line.moved[side == "client"] == available(end)
    bench.turn((linger or 1.0) - 0.1)
    assert bench.reasons == []
    bench.turn(0.2)
    assert bench.reasons == ["done"]


def test_a_reset_of_a_stream_that_has_ended_cleanly_changes_nothing(bench):
    line = bench.connect(socket.AF_INET, target=WHOLE)
    line.target.shutdown(socket.SHUT_WR)
    bench.until(lambda: take(line.client) == b"")
    reset(line.target)
    poller = select.poll()
    poller.register(line.far, 0)
    assert poller.poll(WAIT * 1000)
    bench.rest()
    assert bench.reasons == []


@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize("kind", ["reset", "closed", "of number 0"])
def test_a_sink_that_takes_no_end(bench, side, kind):
    """A reset is seen by the flow that reads from it; a close by other code is seen by none."""
    line, end, far = connect(bench, side, wrap=Reluctant)
    sink = line.far if side == "client" else line.near
    flow = line.down if side == "client" else line.up
    flow.set_interest(-1)  # so that only the end finds it
    if kind == "closed":
        sink.close()
    else:
        far.close()
        sink.shutdown = lambda how: 1 / 0 if how != socket.SHUT_WR else gone()
        if kind == "of number 0":
            sink.fileno = lambda: 0
    end.shutdown(socket.SHUT_WR)
    bench.rest()
    other = "target" if side == "client" else "client"
    assert bench.reasons == ([f"{other}_reset"] if kind == "closed" else [])
    if kind == "of number 0":
        sink.fileno = sink.sock.fileno


def gone(*_):
    raise ConnectionResetError


def test_a_peer_that_has_gone_when_its_stream_ends_is_done(bench):
    line = bench.connect(socket.AF_INET, target=WHOLE)
    line.up.set_interest(-1)  # so that only the end finds it
    reset(line.client)
    line.target.close()
    bench.until(lambda: bench.reasons)
    assert bench.reasons == ["done"]


@pytest.mark.parametrize("is_dropped", [False, True])
@pytest.mark.parametrize("waits", [True, False])
def test_a_session_that_keeps_a_part_of_its_end_is_flushed(bench, is_dropped, waits):
    line = bench.connect(client=WHOLE if is_dropped else HALF, target=HALF, sessions={"target": b""})
    line.far.takes = not waits
    line.client.shutdown(socket.SHUT_WR)
    bench.turn()
    bench.turn()
    line.far.takes = True
    bench.rest()
    assert take_all(line.target) == (b"close_notify" if waits else b"")
    assert line.record.state == "half-closed"


# -- a target that may not be there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [socket.socket.close, reset])
@pytest.mark.parametrize("half_close", [True, False])
@pytest.mark.parametrize(("request_", "reply", "is_there"), [(b"", b"", False), (b"x", b"", False), (b"x", b"y", True)])
def test_an_end_before_any_answer_is_nobody_there(bench, caplog, end, half_close, request_, reply, is_there):
    line = bench.connect(target=SILENT | {"half_close": half_close})
    stream = line.connection.target_stream
    assert stream.received() == 0
    line.client.send(request_)
    line.target.send(reply)
    bench.rest()
    assert (take_all(line.target), take_all(line.client)) == (request_, reply)
    assert (stream.received(), stream.answered) == (len(reply), False)
    end(line.target)
    bench.rest()
    line.client.shutdown(socket.SHUT_WR) if is_there else None
    bench.rest()
    text = "t: the target: closed before sending any data; check that the service is running (client 192.0.2.7:5)"
    assert (text in caplog.messages) is not is_there
    assert bench.reasons in ([["done"], ["target_reset"]] if is_there else [["unreachable"]])
    assert (stream.received(), stream.answered) == (len(reply), is_there)


@pytest.mark.parametrize("end", [socket.socket.close, reset])
def test_the_end_of_a_client_tells_nothing_of_its_target(bench, end):
    line = bench.connect(socket.AF_INET, client=SILENT, target=SILENT)
    end(line.client)
    if end is reset:
        bench.until(lambda: bench.reasons)
        assert bench.reasons == ["client_reset"]
    else:
        bench.until(lambda: take(line.target) == b"")
        line.target.close()
        bench.until(lambda: bench.reasons)
        assert bench.reasons == ["done"], "after an end, the answer may be empty"


def test_a_client_that_has_not_answered_is_no_target(bench):
    line = bench.connect(client=SILENT)
    line.target.shutdown(socket.SHUT_WR)
    bench.rest()
    assert (line.record.state, bench.reasons) == ("half-closed", [])


def test_a_target_that_is_silent_is_named(stack, caplog):
    bench = Bench(stack, times=(None, None, None, None, 5.0))
    bench.connect(target=SILENT).client.send(b"request")
    bench.rest()
    bench.pass_by(6.0, step=1.0)
    assert bench.reasons == ["unreachable"]
    (text,) = caplog.messages
    assert text.startswith("t: the target: has sent nothing within first_byte_timeout; check that the service")
    assert text.endswith(" (client 192.0.2.7:5)")


def test_the_lines_about_each_reason_are_limited(bench, caplog):
    late = relay.ConnectError("db:1: no route", reason="unreachable")
    for number in range(100):
        line = bench.connect(target=SILENT | ({"failure": lambda: late} if number % 2 else {}))
        if number % 2:
            line.connection.flows.on_socket_error(line.far, bench.now)
        else:
            line.connection.flows.close_unreachable(bench.now)
    assert bench.reasons == ["unreachable"] * 100
    few = len(caplog.messages)
    line = bench.connect(target={"failure": lambda: REFUSED})
    line.connection.flows.on_socket_error(line.far, bench.now)
    assert few < 100
    assert len(caplog.messages) == few + 1


# -- a failure that its stream knows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize("end", ["end", "reset"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [(LOST, "carrier_lost"), (REFUSED, "refused"), (ValueError("no reason"), None), (ZeroDivisionError, None)],
    ids=["a reason", "a late refusal", "no reason", "a bug"],
)
def test_a_failure_has_the_reason_that_its_stream_knows(bench, caplog, side, end, error, reason):
    def failure():
        if isinstance(error, type):
            raise error("a bug")
        return error

    line, far, _ = connect(bench, side, {"failure": failure, "answered": side == "client"}, {"failure": lambda: None})
    if end == "end":
        far.shutdown(socket.SHUT_WR)
    else:
        line.far.shutdown(socket.SHUT_RD) if side == "target" else line.near.shutdown(socket.SHUT_RD)
        line.connection.flows.on_socket_error(line.far if side == "target" else line.near, bench.now)
    bench.rest()
    assert bench.reasons == [reason or f"{side}_reset"]
    if error is REFUSED:
        (text,) = caplog.messages
        assert text.startswith("t: db:1:\\nrefused!!!")
        assert text.endswith(" (client 192.0.2.7:5)")
        assert 480 < text.count("!") < 500
    elif isinstance(error, type):
        assert caplog.messages[0].startswith("<relay.Stream to the target, ")
        assert caplog.messages[0].endswith(": its failure() raised, which counts as one")
        assert "ZeroDivisionError: a bug" in caplog.text
    else:
        assert caplog.messages == []


# -- ends whose cause is known later ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize("end", [lambda sock: sock.shutdown(socket.SHUT_WR), reset], ids=["end", "reset"])
@pytest.mark.parametrize("error", [None, LOST])
@pytest.mark.parametrize(("answered", "half_close"), [(True, True), (False, True), (True, False)])
def test_an_end_that_is_seen_before_its_cause_waits_for_it(bench, side, end, error, answered, half_close):
    fate = Fate()
    own = {"settle": 0.25, "failure": fate, "answered": answered, "half_close": half_close}
    line, gone, far = connect(bench, side, own, HALF, family=socket.AF_INET)
    gone.send(b"last words")
    bench.until(lambda: available(far) == 10)
    stream = line.connection.client_stream if side == "client" else line.connection.target_stream
    end(gone)
    bench.until(lambda: stream.settle < 0)
    begun = bench.now
    far.send(b"nobody reads this")
    bench.rest()
    assert end is not reset or available(line.far if side == "client" else line.near) == 17
    assert take_all(far) == b"last words"
    while bench.now < begun + 0.2:
        bench.turn(0.05)
        assert (take(far), bench.reasons, line.record.state, fate.asked) == (None, [], "open", 0)
    fate.error = error
    bench.turn(0.1)
    assert stream.settle == 0.0
    if error is not None:
        assert bench.reasons == ["carrier_lost"]
    elif end is reset:
        assert bench.reasons == [f"{side}_reset"]
    else:
        assert line.record.state == "half-closed"
        bench.rest()
        assert take(far) == b""
        far.close()
        bench.until(lambda: bench.reasons)
        assert bench.reasons == ["done"]


def test_only_the_first_end_waits_and_what_happens_meanwhile_goes_on(bench):
    line = bench.connect(target={"settle": 0.25}, client={"settle": 3.0})
    line.target.shutdown(socket.SHUT_WR)
    bench.rest()
    line.connection.flows.on_socket_error(line.far, bench.now)
    bench.turn(0.2)
    line.down.end(bench.now)
    assert (bench.reasons, line.down.ended) == ([], 0.0)
    bench.turn(0.1)
    assert (line.record.state, line.down.ended) == ("half-closed", bench.now)
    ended = bench.now
    bench.turn(5.0)
    assert (bench.reasons, line.down.ended) == ([], ended)


def test_a_connection_that_has_ended_meanwhile_waits_for_no_cause(bench, caplog):
    line = bench.connect(target={"settle": 0.25})
    stream = line.connection.target_stream
    line.target.shutdown(socket.SHUT_WR)
    bench.rest()
    line.connection.close("killed", bench.now)
    bench.turn(0.3)
    assert (bench.reasons, stream.settle, caplog.text) == (["killed"], 0.0, "")


# -- the end with the last bytes, and urgent data ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "target", "up", "down"),
    [
        (None, None, True, True),
        (HALF, HALF, True, True),
        (WHOLE, HALF, True, False),
        (HALF, WHOLE, False, True),
        (None, WHOLE, False, True),
        (WHOLE, None, True, False),
        ({"settle": 1.0}, HALF, False, True),
        (HALF, {"settle": 1.0}, True, False),
        ({"settle": 1.0}, None, False, True),
        (None, {"settle": -1.0}, True, False),
    ],
)
def test_an_end_is_passed_on_with_the_last_bytes_if_it_is_passed_on_at_once(bench, client, target, up, down):
    line = bench.connect(client=client, target=target)
    assert [line.connection.flows.passes_end_of(flow) for flow in (line.up, line.down)] == [up, down]


@pytest.mark.parametrize(
    ("client", "target", "options", "up", "down"),
    [
        (None, None, {}, True, True),
        (None, None, {"family": socket.AF_INET6}, True, True),
        (None, None, {"family": socket.AF_UNIX}, False, False),
        (HALF, HALF, {}, True, True),
        (WHOLE, HALF, {}, True, False),
        (None, WHOLE, {}, False, True),
        (HALF, None, {"sessions": {"client": b""}}, True, False),
        (None, HALF, {"sessions": {"target": b""}}, False, True),
    ],
)
def test_urgent_data_is_for_tcp_up_to_the_peer(bench, client, target, options, up, down):
    line = bench.connect(**{"family": socket.AF_INET} | options, client=client, target=target)
    assert [line.connection.flows.takes_urgent(flow) for flow in (line.up, line.down)] == [up, down]
