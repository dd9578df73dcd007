"""``relay.engine.warm_stream``: each row of the table of states."""

import socket
import time

import pytest
from helpers import makes
from state_table import rows_of

from relay.engine import warm_stream as module
from relay.engine.warm_stream import WarmState, WarmStream
from relay.errors import ConnectError
from relay.eventloop.loop import Loop
from relay.streams.stream import Stream, StreamPath

NOW = time.monotonic()
WORK = object()
LIMIT, KEEP = 5000.0, 30000.0  # seconds; a busy machine may run a test a minute after the import


class Pool:
    """The owner of the stream; notes the calls."""

    def __init__(self):
        self.loop = Loop()
        self.calls = []
        self.told = []  # of which stream, and when

    def failed(self, stream, error, now):
        self.calls.append(error)
        self.told.append((stream, now))
        stream.close("failed", now)

    def is_ready(self, stream, now):
        self.calls.append("ready")
        self.told.append((stream, now))

    def is_over(self, stream, reason, now):
        self.calls.append(reason)
        self.told.append((stream, now))

    def close_stream(self, stream, clean):
        self.calls.append(("close_stream", clean))
        stream.close()


class Attempt:
    """The attempt to open it; notes how it ends."""

    def __init__(self):
        self.calls = []

    def abandon(self):
        self.calls.append("abandoned")

    def after_fork(self):
        self.calls.append("after fork")


class Client:
    """The connection of a client."""

    def __init__(self):
        self.summary = type("Summary", (), {})()

    def open(self, *arguments):
        self.opened = arguments


class Rig:
    def __init__(self, state):
        self.pool, self.attempt, self.client = Pool(), Attempt(), Client()
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.stream = WarmStream(self.pool, "db:5432", KEEP, NOW)
        self.stream.wait_for_target(self.attempt, NOW + LIMIT, NOW)
        if state == "ready":
            self.open()
            self.pool.calls.clear()

    def open(self):
        self.stream.open(self.near, None, None, NOW)

    def fail(self):
        self.stream.fail("refused", NOW)

    def give(self):
        self.stream.give(self.client, WORK, NOW + 1)

    def close(self):
        self.stream.close("discarded", NOW)

    def end(self):
        self.far.shutdown(socket.SHUT_WR)
        self.pool.loop.turn()

    def reset(self):
        self.far.close()
        self.pool.loop.turn()

    def pass_time(self, seconds=LIMIT + KEEP):
        """Let all be due that is due by then; the loop's clock stays."""
        self.pool.loop.timers.run(NOW + seconds)

    def turn(self):
        """A turn of the loop, which closes what was discarded."""
        self.pool.loop.call(list)
        self.pool.loop.turn()

    def finish(self):
        self.turn()
        for one in (self.near, self.far, self.stream.target):
            if one is not None:
                one.close()
        self.pool.loop.close()


@pytest.fixture
def rig():
    yield from makes(Rig, lambda one: one.finish())


STATE_ROWS = [
    ("connecting", "stream", "ready", "open", ["ready"]),
    ("connecting", "no stream", "over", "fail", ["failed"]),
    ("connecting", "limit", "over", "pass_time", ["db:5432: no answer in time; check that it is reachable", "failed"]),
    ("connecting", "close", "over", "close", ["discarded"]),
    ("ready", "client", "over", "give", []),
    ("ready", "EOF", "over", "end", ["ended"]),
    ("ready", "reset", "over", "reset", ["ended"]),
    ("ready", "age", "over", "pass_time", ["expired"]),
    ("ready", "close", "over", "close", ["discarded"]),
    ("any", "fork", "over", None, []),
]


def test_the_table_is_the_one_that_is_run():
    assert [row[:3] for row in STATE_ROWS] == rows_of(module)


@pytest.mark.parametrize("row", [row for row in STATE_ROWS if row[3]], ids=lambda row: f"{row[0]}, {row[1]}")
def test_each_row(rig, row):
    before, _, after, event, told = row
    made = rig(before)
    assert made.stream.state.value == before
    getattr(made, event)()
    assert made.stream.state.value == after
    assert [str(one) for one in made.pool.calls] == told
    assert made.attempt.calls == (["abandoned"] if before == "connecting" and after == "over" else [])
    is_watched = made.near.fileno() in made.pool.loop.handlers
    assert is_watched == (after == "ready")
    made.turn()
    is_closed = before == "ready" and event != "give"
    assert (made.near.fileno() < 0) == is_closed
    if event == "give":
        assert made.client.opened == (made.near, None, WORK, NOW + 1)
    assert all(of is made.stream and now >= NOW for of, now in made.pool.told)
    if told[:1] == ["db:5432: no answer in time; check that it is reachable"]:
        assert isinstance(made.pool.calls[0], ConnectError) and made.pool.calls[0].reason == "connect_timeout"
    made.stream.close("discarded", NOW)
    assert len(made.pool.calls) == len(told) or after == "ready", "a second close does nothing"


@pytest.mark.parametrize("state", ["connecting", "ready"])
def test_a_fork_only_closes_the_descriptors(rig, state):
    made = rig(state)
    made.stream.after_fork()
    assert made.stream.state is WarmState.OVER
    assert made.pool.calls == []
    assert made.attempt.calls == (["after fork"] if state == "connecting" else [])
    assert (made.near.fileno() < 0) == (state == "ready")


def test_bytes_that_come_first_are_left_where_they_are(rig):
    made = rig("ready")
    made.far.sendall(b"220 mail.example ESMTP\r\n")
    assert made.pool.loop.poller.poll(0) == [], "they do not wake the thread"
    assert not made.stream.has_ended()
    made.give()
    assert made.near.recv(100) == b"220 mail.example ESMTP\r\n"


def test_bytes_and_an_end_are_an_end(rig):
    made = rig("ready")
    made.far.sendall(b"421 too busy\r\n")
    made.end()
    assert made.pool.calls == ["ended"]


@pytest.mark.parametrize("ends", [False, True])
def test_an_end_is_noticed_before_the_loop_has_looked(rig, ends):
    made = rig("ready")
    if ends:
        made.far.close()
    assert made.stream.has_ended() is ends


@pytest.mark.parametrize("how", ["EOF", "reset", "bytes"])
def test_a_system_without_an_event_for_the_end(rig, monkeypatch, how):
    monkeypatch.setattr("relay.eventloop.poller.END", 0)
    made = rig("ready")
    assert not made.stream.has_ended()
    if how == "bytes":
        made.far.sendall(b"hello")
        made.pool.loop.turn()
        assert made.pool.calls == []
        assert made.pool.loop.poller.poll(0) == [], "they wake the thread once"
        assert not made.stream.has_ended()
        assert made.near.recv(100) == b"hello"
        made.reset()
    elif how == "EOF":
        made.far.shutdown(socket.SHUT_WR)
        assert made.stream.has_ended(), "before the loop has looked"
        made.pool.loop.turn()
    else:
        made.reset()
    assert made.pool.calls == ["ended"]


def test_a_record_says_that_the_client_has_waited_for_nothing(rig):
    made = rig("ready")
    made.stream.summary.path = StreamPath(((1, 0.5), (2, 0.25)), "ssh://bastion", 2)
    made.give()
    summary = made.client.summary
    assert summary.target == "db:5432"
    assert summary.path == StreamPath((), "ssh://bastion", 2, warm=True)


def test_a_stream_of_a_transport_is_closed_by_its_transport(rig):
    made, closed = rig("connecting"), []
    stream = Stream(made.near, on_close=lambda: closed.append(True))
    stream.answered = False
    made.stream.open(made.near, stream, None, NOW)
    assert made.stream.is_unanswered()
    made.close()
    assert made.pool.calls == ["ready", ("close_stream", True), "discarded"]
    assert closed == [True]


def test_another_age_holds_from_the_opening_on(rig):
    made = rig("ready")
    made.stream.change_age(10.0, NOW + 5)
    made.pass_time(9.9)
    assert made.pool.calls == []
    made.pass_time(10.1)
    assert made.pool.calls == ["expired"]


def test_a_bug_in_a_handler_ends_the_stream_alone(rig, caplog):
    made = rig("ready")
    made.stream.target = None  # the bug
    made.reset()
    assert made.stream.state is WarmState.OVER
    assert "this is a bug in relay" in caplog.text


@pytest.mark.parametrize("event", ["close", "pass_time"])
def test_a_server_that_speaks_first_gets_an_end_of_file_and_no_reset(rig, event):
    made = rig("ready")
    made.far.sendall(b"220 mail.example ESMTP")
    getattr(made, event)()
    made.turn()
    assert made.far.recv(1) == b""


def test_a_stream_begins_with_nothing(rig):
    made = rig("connecting")
    stream = WarmStream(made.pool, None, KEEP, NOW)
    assert (stream.pending, stream.target, stream.target_stream, stream.state.value) == (None, None, None, "connecting")
    assert stream.summary.started == NOW
    stream.wait_for_target(made.attempt, NOW + LIMIT, NOW)
    assert stream.pending is made.attempt
    made.stream.close("discarded", NOW)
    made.pass_time()
    assert str(made.pool.calls[1]) == "the target: no answer in time; check that it is reachable"


def test_another_age_holds_for_a_stream_that_is_not_open_yet(rig):
    made = rig("connecting")
    made.stream.change_age(10.0, NOW)
    made.pass_time(LIMIT - 1)
    assert made.pool.calls == []
    made.open()
    assert made.stream.opened == NOW
    made.pass_time(10.1)
    assert made.pool.calls == ["ready", "expired"]


def test_a_path_that_is_not_known_is_that_of_a_warm_stream(rig):
    made = rig("ready")
    made.stream.summary.route = route = ("a hop",)
    made.give()
    assert made.client.summary.path == StreamPath((), warm=True)
    assert made.client.summary.route is route


def stream_of(made, **figures):
    stream = Stream(made.near)
    for name, value in figures.items():
        setattr(stream, name, value)
    made.stream.open(made.near, stream, None, NOW)
    return stream


@pytest.mark.parametrize("answered", [True, False])
def test_a_stream_may_wait_for_the_answer_of_its_target(rig, answered):
    made = rig("connecting")
    assert not made.stream.is_unanswered()
    stream = stream_of(made, answered=answered)
    assert made.stream.is_unanswered() is not answered
    made.stream.give(made.client, WORK, NOW)
    assert made.client.opened == (made.near, stream, WORK, NOW)


def test_a_plain_stream_is_spoilt_by_its_end_only(rig):
    made = rig("ready")
    assert made.stream.spoilt() is None
    made.far.close()
    assert made.stream.spoilt() == "ended"


@pytest.mark.parametrize("is_withdrawn", [True, False])
def test_a_stream_whose_target_gets_no_new_clients_is_expired(rig, is_withdrawn, monkeypatch):
    made = rig("connecting")
    monkeypatch.setattr(Stream, "is_withdrawn", is_withdrawn)
    stream_of(made)
    assert made.stream.spoilt() == ("expired" if is_withdrawn else None)
    made.far.close()
    assert made.stream.spoilt() == "ended"
