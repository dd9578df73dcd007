"""``relay.engine.connection`` step by step: what each event starts, ends and records."""

from __future__ import annotations

import errno
import logging
import os
import socket
from types import SimpleNamespace

import pytest
from notes import Notes

import relay
from relay.engine import connection as module
from relay.engine.connection import Connection
from relay.engine.records import ConnectionState
from relay.eventloop.poller import ERR, HUP, READ
from relay.streams.request import RejectedRequest, Request

NOW = 1234.5
BEGUN = 1000.0
PEER = ("192.0.2.7", 5)
GOOD = b"welcome"


class Stay(Notes):
    """The last part of a client."""


class Flow(Notes):
    """A flow whose figures the test sets."""

    mask, reads, moved, first, last, spliced, ended, bytes_spliced = 0, READ, 0, None, None, False, 0, 0

    def __init__(self, descriptor):
        super().__init__()
        self.descriptor = descriptor
        self.handler = object()

    def spliced_bytes(self):
        return self.bytes_spliced

    def count(self):
        return self.moved


class Pair(Notes):
    """The flows of a connection."""

    def __init__(self, connection, work, client, target):
        super().__init__(connection, work, client, target)
        self.upstream, self.downstream = Flow(client.fileno()), Flow(target.fileno())


class Metered(Pair):
    """The flows of a connection with a limited bandwidth."""


class Loop:
    """The loop of the relay thread; notes its calls."""

    def __init__(self):
        self.calls, self.handlers, self.timers = [], {}, object()
        self.poller = SimpleNamespace(modify=lambda *given: self.calls.append(("modify", *given)))
        self.error = None

    def watch(self, descriptor, mask, handler):
        self.calls.append(("watch", descriptor, mask, handler))
        if self.error is not None:
            raise self.error
        self.handlers[descriptor] = handler

    def forget(self, *arguments, **options):
        self.calls.append(("forget", *arguments, *options.items()))

    def discard(self, sock):
        self.calls.append(("discard", sock))


class Owner(Notes):
    """The relay thread."""

    name, keepalive_enabled_until = "it", -1.0

    def __init__(self):
        super().__init__()
        self.loop, self.limits = Loop(), object()
        self.labels = {}
        self.entrance = Notes()
        self.entrance.half_open = {}
        self.entrance.introduce = None


@pytest.fixture
def owner(monkeypatch):
    for name, double in {
        "ConnectionDeadline": Notes,
        "FinalReply": Stay,
        "FinalStay": Stay,
        "FlowPair": Pair,
        "HandshakeReader": Notes,
        "MeteredPair": Metered,
        "TarpitStay": Notes,
    }.items():
        monkeypatch.setattr(module, name, double)
    return Owner()


@pytest.fixture
def resets(monkeypatch):
    found = []
    monkeypatch.setattr(module, "set_to_reset", found.append)
    return found


@pytest.fixture
def kept(monkeypatch):
    found = []
    monkeypatch.setattr(module, "keep_alive", found.append)
    return found


@pytest.fixture
def ends():
    """The client's socket and its program's, the target's socket and its program's."""
    pairs = [*socket.socketpair(), *socket.socketpair()]
    yield pairs
    for end in pairs:
        end.close()


@pytest.fixture
def one(owner, ends, resets, kept):
    return Connection(owner, ends[0], None, PEER, BEGUN)


def request(early=b""):
    return Request("db", 5432, GOOD, lambda reason: b"no: " + reason.encode(), early)


# -- the beginning -------------------------------------------------------------------------------------------------


def test_it_begins(owner, ends, one):
    assert (one.owner, one.client, one.client_stream, one.target, one.target_stream) == (
        owner,
        ends[0],
        None,
        None,
        None,
    )
    assert (one.pending, one.flows, one.ticket, one.request) == (None, None, None, None)
    assert one.state is ConnectionState.CONNECTING
    assert one.deadline.given == (one, owner.limits, owner.loop.timers)
    assert (one.summary.peer, one.summary.started) == (PEER, BEGUN)
    assert one.tunnel_name == "it"
    assert not one.is_closed


def test_a_stream_brings_what_its_listener_knows(owner, ends):
    identity = relay.Identity("i2p", "somebody")
    stream = relay.Stream(ends[0])
    stream.request, stream.identity, stream.server_name = request(), identity, "db.example"
    one = Connection(owner, ends[0], stream, PEER, BEGUN)
    assert one.client_stream is stream
    assert (one.request, one.summary.identity, one.summary.server_name) == (stream.request, identity, "db.example")


# -- the request ---------------------------------------------------------------------------------------------------


def test_the_request_is_read(owner, ends, one):
    handshake = object()
    one.read_request(handshake, NOW)
    assert one.state is ConnectionState.REQUESTING
    assert one.deadline.calls == [("start_request", NOW)]
    assert owner.entrance.half_open == {one: None}
    assert one.pending.given == (ends[0], owner.loop, handshake, one._on_request)
    assert one.pending.calls == [("begin", NOW)]


def test_a_request_goes_to_the_entrance(owner, one):
    one.read_request(object(), NOW)
    asked = request()
    one._on_request(asked, NOW)
    assert (one.pending, one.state, one.request) == (None, ConnectionState.CONNECTING, asked)
    assert owner.entrance.calls == [("on_request", one, NOW)]


def test_a_bad_request_gets_its_reply(owner, ends, one):
    rejection = RejectedRequest(b"no", "it is bad", "unsupported")
    one._on_request(rejection, NOW)
    assert owner.entrance.calls == [("on_rejected_request", one, rejection, NOW), ("on_last_reply", one, NOW)]
    assert one.state is ConnectionState.REPLYING
    client, loop, last, replied = one.pending.given
    assert (client, loop, last) == (ends[0], owner.loop, b"no")
    assert one.pending.calls == [("begin", NOW)]
    replied(NOW)
    assert (one.summary.reason, one.is_closed) == ("unsupported", True)
    assert owner.loop.calls[-1] == ("discard", ends[0])


def test_a_client_that_has_gone_is_reset(one):
    one._on_request(ConnectionResetError(), NOW)
    assert (one.summary.reason, one.summary.finished) == ("client_reset", NOW)


def test_the_network_of_a_client(ends, one, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "source_of", lambda *given: asked.append(given) or "it")
    assert one.source() == "it"
    assert asked == [(ends[0], PEER)]


def test_it_gives_way(one):
    one.give_way(NOW)
    assert (one.summary.reason, one.summary.finished) == ("overloaded", NOW)


def test_a_last_stay_is_finished_instead(one):
    one.pending = stay = Stay()
    one.give_way(NOW)
    assert stay.calls == [("finish", NOW)]
    assert not one.is_closed


# -- waiting -------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(monkeypatch):
    found = []
    monkeypatch.setattr(module, "watch", lambda *given: found.append(given))
    return found


def test_a_denied_client_is_kept(owner, ends, one):
    one.keep_in_tarpit(30.0, NOW)
    assert one.state is ConnectionState.TARPIT
    assert one.deadline.calls == [("stop",)]
    client, loop, over = one.pending.given
    assert (client, loop) == (ends[0], owner.loop)
    assert one.pending.calls == [("begin", 30.0, NOW)]
    over(NOW)
    assert one.summary.reason == "denied"


def test_a_question_is_waited_for(owner, ends, one, watched):
    question = object()
    one.wait_for_answer(question)
    assert (one.state, one.pending) == (ConnectionState.ADMITTING, question)
    assert one.deadline.calls == [("start_connecting", BEGUN, BEGUN)]
    assert watched == [(owner.loop, ends[0].fileno(), 0, one.client_event)]


def test_a_slot_is_waited_for(one, watched):
    one.wait_for_slot()
    assert one.state is ConnectionState.QUEUED
    assert len(watched) == 1


def test_the_target_is_waited_for(one):
    one.state = ConnectionState.QUEUED
    pending = object()
    one.wait_for_target(pending, NOW)
    assert (one.state, one.pending) == (ConnectionState.CONNECTING, pending)
    assert one.deadline.calls == [("start_connecting", BEGUN, NOW)]


@pytest.mark.parametrize(
    ("event", "error", "gone"),
    [
        (ERR, 0, False),
        (ERR, errno.ECONNRESET, True),
        (HUP, 0, True),
        (ERR | HUP, 0, True),
        (READ, 0, False),
        (0, 0, False),
    ],
)
def test_a_client_that_hangs_up(ends, one, event, error, gone):
    asked = []

    class Client:
        def getsockopt(self, *given):
            asked.append(given)
            return error

        def fileno(self):
            return ends[0].fileno()

    one.client = Client()
    one.client_event(event, NOW)
    assert (one.summary.reason, one.is_closed) == (("client_reset", True) if gone else (None, False))
    assert asked in ([], [(socket.SOL_SOCKET, socket.SO_ERROR)])
    if gone:
        assert one.summary.finished == NOW


# -- no stream -----------------------------------------------------------------------------------------------------


def test_a_proxy_client_is_told_why(one):
    one.summary.request = request()
    one.pending = pending = Notes()
    one.fail("refused", NOW)
    assert pending.calls == [("abandon",)]
    assert one.pending.given[2] == b"no: refused"
    assert one.deadline.calls == [("stop",)]
    one.pending.given[3](NOW)
    assert one.summary.reason == "refused"


def test_others_are_reset(ends, one, resets):
    one.fail("refused", NOW)
    assert (one.summary.reason, one.summary.finished, resets) == ("refused", NOW, [ends[0]])


def test_or_get_an_end_of_file(one, resets):
    one.fail("denied", NOW, clean=True)
    assert one.pending.given[2] == b""
    one.pending.given[3](NOW)
    assert (one.summary.reason, resets) == ("denied", [])


def test_one_that_is_over_gets_nothing_more(owner, one):
    one.summary.request = request()
    one.close("done", NOW)
    one.fail("refused", NOW + 1)
    assert (one.summary.reason, one.summary.finished, one.state) == ("done", NOW, ConnectionState.CLOSED)
    assert owner.entrance.calls == []


@pytest.mark.parametrize("has_stream", [True, False])
def test_a_target_that_is_not_used_any_more_is_reset(owner, ends, one, resets, has_stream):
    one.target = ends[2]
    one.target_stream = stream = object() if has_stream else None
    one.fail("denied", NOW, clean=True)
    assert (one.target, one.target_stream) == (None, None)
    assert owner.calls == ([("close_stream", stream, False)] if has_stream else [])
    assert resets == ([] if has_stream else [ends[2]])


def test_a_limit_before_it_is_open(one):
    one.pending = pending = Notes()
    one.limit_reached("connect_timeout", NOW)
    assert pending.calls == [("too_late",), ("abandon",)]
    assert (one.summary.reason, one.summary.finished) == ("connect_timeout", NOW)


def test_a_limit_without_an_attempt(one):
    one.limit_reached("connect_timeout", NOW)
    assert one.summary.reason == "connect_timeout"


def test_another_limit(one):
    one.pending = pending = Notes()
    one.limit_reached("idle", NOW)
    assert pending.calls == [("abandon",)]
    assert (one.summary.reason, one.summary.finished) == ("idle", NOW)


# -- open ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def work(owner):
    return SimpleNamespace(loop=owner.loop)


@pytest.fixture
def stream(ends):
    return relay.Stream(ends[2])


def test_both_sides_are_read(owner, ends, one, work):
    one.open(ends[2], None, work, NOW)
    flows = one.flows
    assert type(flows) is Pair
    assert flows.given == (one, work, ends[0], ends[2])
    up, down = flows.upstream, flows.downstream
    assert (up.mask, down.mask) == (READ, READ)
    assert owner.loop.calls == [
        ("watch", ends[2].fileno(), READ, down.handler),
        ("watch", ends[0].fileno(), READ, up.handler),
    ]
    assert (one.target, one.target_stream, one.state) == (ends[2], None, ConnectionState.OPEN)
    assert one.summary.opened == NOW
    assert one.deadline.calls == [("start_open", NOW)]
    assert flows.calls == up.calls == []


@pytest.mark.parametrize(("ticket", "kind"), [(False, Pair), (True, Metered)])
def test_a_limited_bandwidth_is_measured(ends, one, work, ticket, kind):
    one.ticket = SimpleNamespace(is_shaped=ticket, leave=list)
    one.open(ends[2], None, work, NOW)
    assert type(one.flows) is kind


@pytest.mark.parametrize("answered", [True, False])
def test_a_stream_that_has_not_answered_can_count(ends, one, work, stream, answered):
    stream.answered = answered
    stream.received = before = object()
    one.open(ends[2], stream, work, NOW)
    assert one.target_stream is stream
    assert stream.received == (before if answered else one.flows.downstream.count)
    assert one.flows.calls == [("begin", NOW)]


def test_the_stream_of_a_client_begins_too(owner, ends, work):
    one = Connection(owner, ends[0], relay.Stream(ends[0]), PEER, BEGUN)
    one.open(ends[2], None, work, NOW)
    assert one.flows.calls == [("begin", NOW)]


def test_a_client_that_was_watched_is_read_from_now_on(owner, ends, one, work):
    owner.loop.handlers[ends[0].fileno()] = one.client_event
    one.open(ends[2], None, work, NOW)
    assert owner.loop.calls[1:] == [("modify", ends[0].fileno(), READ)]
    assert owner.loop.handlers[ends[0].fileno()] is one.flows.upstream.handler


def test_a_client_that_was_read_is_read_on(owner, ends, one, work):
    owner.loop.handlers[ends[0].fileno()] = object()
    one.open(ends[2], None, work, NOW)
    assert len(owner.loop.calls) == 1
    assert owner.loop.handlers[ends[0].fileno()] is one.flows.upstream.handler


@pytest.mark.parametrize("early", [b"", b"early"])
def test_a_proxy_client_gets_its_reply_and_its_early_bytes_go_on(ends, one, work, early):
    one.summary.request = request(early)
    one.open(ends[2], None, work, NOW)
    assert ends[1].recv(100) == GOOD
    assert one.flows.upstream.calls == ([("queue_first", memoryview(early))] if early else [])


def test_a_proxy_client_that_has_gone(owner, ends, one, work):
    one.summary.request = request()
    ends[1].close()
    one.open(ends[2], None, work, NOW)
    assert (one.summary.reason, one.summary.finished, one.flows) == ("client_reset", NOW, None)
    assert ("discard", ends[2]) in owner.loop.calls


@pytest.mark.parametrize("goes_on", [True, False])
def test_the_target_learns_who_its_client_is(owner, ends, one, work, goes_on):
    asked = []
    owner.entrance.introduce = lambda *given: asked.append(given) or goes_on
    one.open(ends[2], None, work, NOW)
    assert asked == [(one, NOW)]
    assert one.state is (ConnectionState.OPEN if goes_on else ConnectionState.CONNECTING)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_a_system_that_cannot_watch_another_socket(owner, ends, one, work, caplog, number):
    owner.loop.error = OSError(number, os.strerror(number))
    one.open(ends[2], None, work, NOW)
    assert (one.summary.reason, one.summary.finished) == ("overloaded", NOW)
    text = f"it: the system cannot watch another socket: {os.strerror(number)} (client 192.0.2.7:5)"
    assert caplog.record_tuples == [("relay", logging.ERROR, text)]


def test_a_socket_that_a_factory_has_returned_twice(owner, ends, one, work):
    owner.loop.error = FileExistsError(errno.EEXIST, "it is there")
    with pytest.raises(FileExistsError):
        one.open(ends[2], None, work, NOW)


@pytest.mark.parametrize(
    ("pending", "asked", "until", "both"),
    [
        (True, False, BEGUN, True),
        (False, True, BEGUN, True),
        (False, False, BEGUN, False),
        (True, True, BEGUN - 1, False),
    ],
)
def test_keepalive_of_those_that_were_not_open_when_it_was_set(
    owner, ends, one, work, kept, pending, asked, until, both
):
    owner.keepalive_enabled_until = until
    one.pending = object() if pending else None
    one.summary.request = request() if asked else None
    one.open(ends[2], None, work, NOW)
    assert one.pending is None
    assert kept == ([ends[0], ends[2]] if both else [])


def test_keepalive_only_where_it_is_open(ends, one, kept):
    one.enable_keepalive()
    one.state = ConnectionState.OPEN
    one.enable_keepalive()
    one.state, one.target = ConnectionState.CONNECTING, ends[2]
    one.enable_keepalive()
    assert kept == []
    one.state = ConnectionState.OPEN
    one.enable_keepalive()
    assert kept == [ends[0], ends[2]]


def test_keepalive_that_the_kernel_does_not_have(ends, one, monkeypatch, caplog):
    def fail(end):
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(module, "keep_alive", fail)
    one.state, one.target = ConnectionState.OPEN, ends[2]
    with caplog.at_level(logging.DEBUG, "relay"):
        one.enable_keepalive()
    assert caplog.messages == [f"{one!r}: keep-alive: [Errno {errno.EOPNOTSUPP}] not here"] * 2


# -- the end -------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(owner, ends, one, work, stream):
    """An open connection whose target is a stream."""
    one.open(ends[2], stream, work, NOW)
    owner.loop.calls.clear()
    return one


def test_its_end_in_order(owner, ends, opened):
    flows = opened.flows
    flows.upstream.moved, flows.downstream.moved = 10, 20
    flows.downstream.first, flows.downstream.last = 1.5, 2.5
    opened.ticket = ticket = Notes()
    opened.close("done", NOW)
    summary = opened.summary
    assert (summary.reason, summary.finished, opened.state) == ("done", NOW, ConnectionState.CLOSED)
    assert (summary.received, summary.sent, summary.first_byte) == (10, 20, 1.5)
    assert (summary.spliced, summary.target_ended_first) == (None, False)
    assert flows.calls == [("begin", NOW), ("release",)]
    assert opened.deadline.calls[-1] == ("release",)
    assert ticket.calls == [("leave",)]
    assert owner.loop.calls == [("discard", ends[0])]
    assert (opened.flows, opened.target, opened.target_stream, opened.pending, opened.ticket) == (None,) * 5
    assert opened.client_stream is None
    assert owner.calls[-1] == ("connection_over", opened)
    opened.close("idle", NOW + 1)
    assert (summary.reason, len(owner.calls)) == ("done", 2)


@pytest.mark.parametrize(
    ("reason", "clean", "clean_target", "resets_client", "target_is_clean"),
    [
        ("done", False, False, False, True),
        ("idle", False, False, True, False),
        ("idle", True, False, False, True),
        ("idle", False, True, True, True),
        ("linger", False, False, True, False),
    ],
)
def test_what_is_reset(
    owner, opened, stream, ends, resets, reason, clean, clean_target, resets_client, target_is_clean
):
    opened.close(reason, NOW, clean, clean_target)
    assert resets == ([ends[0]] if resets_client else [])
    assert ("close_stream", stream, target_is_clean) in owner.calls
    if clean_target:
        assert ends[3].recv(1) == b"", "it gets an EOF, also if something is unread"
    else:
        ends[3].setblocking(False)
        with pytest.raises(BlockingIOError):
            ends[3].recv(1)


def test_a_target_that_has_gone_gets_no_end_of_file(owner, opened, stream, ends):
    ends[2].close()
    opened.close("idle", NOW, clean_target=True)
    assert ("close_stream", stream, True) in owner.calls


def test_a_close_that_is_clean_sends_no_end_of_file_first(opened, ends):
    opened.close("done", NOW, clean_target=True)
    ends[3].setblocking(False)
    with pytest.raises(BlockingIOError):
        ends[3].recv(1)


@pytest.mark.parametrize(
    ("reason", "up_ended", "half_close", "clean"),
    [
        ("linger", 5.0, False, True),
        ("linger", 5.0, True, False),
        ("linger", 0, False, False),
        ("idle", 5.0, False, False),
    ],
)
def test_a_target_without_half_close_whose_answer_is_given_up(
    owner, ends, one, work, reason, up_ended, half_close, clean
):
    stream = relay.Stream(ends[2], half_close=half_close)
    one.open(ends[2], stream, work, NOW)
    one.flows.upstream.ended = up_ended
    one.close(reason, NOW)
    assert ("close_stream", stream, clean) in owner.calls


def test_a_plain_target_after_a_linger(ends, one, work, resets):
    one.open(ends[2], None, work, NOW)
    one.flows.upstream.ended = 5.0
    one.close("linger", NOW)
    assert resets == [ends[0], ends[2]]


def test_a_plain_target_is_closed(owner, ends, one, work, resets):
    one.open(ends[2], None, work, NOW)
    owner.loop.calls.clear()
    one.close("done", NOW)
    assert owner.loop.calls == [("discard", ends[0]), ("discard", ends[2])]
    assert resets == []


@pytest.mark.parametrize(
    ("up", "down", "first"),
    [(0, 0, False), (0, 5, True), (3, 5, False), (5, 5, False), (6, 5, True), (3, 0, False), (0.5, 5, False)],
)
def test_who_has_ended_first(opened, up, down, first):
    opened.flows.upstream.ended, opened.flows.downstream.ended = up, down
    opened.close("done", NOW)
    assert opened.summary.target_ended_first is first


@pytest.mark.parametrize(
    ("up", "down", "spliced"),
    [
        ((False, 0), (False, 0), None),
        ((True, 7), (False, 0), (7, 0)),
        ((False, 0), (True, 9), (0, 9)),
        ((True, 0), (True, 0), None),
    ],
)
def test_what_was_spliced(opened, up, down, spliced):
    flows = opened.flows
    flows.upstream.spliced, flows.upstream.bytes_spliced = up
    flows.downstream.spliced, flows.downstream.bytes_spliced = down
    opened.close("done", NOW)
    assert opened.summary.spliced == spliced


def test_the_time_of_a_first_byte_may_be_that_of_the_last(opened):
    opened.flows.downstream.last = 2.5
    opened.close("done", NOW)
    assert opened.summary.first_byte == 2.5


@pytest.mark.parametrize("moved", [0, 5])
def test_a_target_that_has_sent_something_has_answered(opened, stream, moved):
    stream.answered = False
    opened.flows.downstream.moved = moved
    opened.close("done", NOW)
    assert stream.answered is bool(moved)


@pytest.mark.parametrize(("pending", "watched"), [(False, False), (True, False), (False, True), (True, True)])
def test_its_end_before_it_is_open(owner, ends, one, pending, watched):
    one.pending = made = Notes() if pending else None
    if watched:
        owner.loop.handlers[ends[0].fileno()] = object()
    one.close("closed", NOW)
    assert made is None or made.calls == [("abandon",)]
    forgotten = [("forget", ends[0].fileno(), ("closing", True))] if pending or watched else []
    assert owner.loop.calls == [*forgotten, ("discard", ends[0])]
    assert one.pending is None


def test_the_stream_of_a_client_is_closed(owner, ends, resets):
    one = Connection(owner, ends[0], stream := relay.Stream(ends[0]), PEER, BEGUN)
    one.close("idle", NOW)
    assert owner.calls == [("close_stream", stream, False), ("connection_over", one)]
    assert resets == []
    one = Connection(owner, ends[0], stream, PEER, BEGUN)
    one.close("done", NOW)
    assert owner.calls[2:] == [("close_stream", stream, True), ("connection_over", one)]


@pytest.mark.parametrize("how", ["alone", "target", "pending"])
def test_a_forked_child_closes_descriptors_only(owner, ends, one, monkeypatch, how):
    closed = []
    monkeypatch.setattr(module, "close_descriptor", closed.append)
    one.target = ends[2] if how == "target" else None
    one.pending = pending = Notes() if how == "pending" else None
    one.after_fork()
    assert closed == ([ends[0], ends[2]] if how == "target" else [ends[0]])
    assert pending is None or pending.calls == [("after_fork",)]
    assert one.state is ConnectionState.CLOSED
    assert owner.loop.calls == owner.calls == []


# -- its figures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("up", "down", "engine"), [(0, 0, "copy"), (7, 0, "splice"), (0, 9, "splice"), (7, 9, "splice")]
)
def test_the_record_of_an_open_one(opened, up, down, engine):
    flows = opened.flows
    flows.upstream.moved, flows.downstream.moved = 10, 20
    flows.upstream.bytes_spliced, flows.downstream.bytes_spliced = up, down
    record = opened.record(NOW + 5)
    assert (record.received, record.sent, record.engine, record.state) == (10, 20, engine, "open")
    assert record.age == NOW + 5 - BEGUN
    assert opened.bytes_moved() == (10, 20, up, down)


@pytest.mark.parametrize(("first", "last", "time"), [(NOW + 1, NOW + 2, 1.0), (None, NOW + 2, 2.0)])
def test_the_first_byte_of_an_open_one(opened, monkeypatch, first, last, time):
    found = []
    monkeypatch.setattr(type(opened.summary), "record_of", lambda self, *given: found.append(given))
    opened.flows.downstream.first, opened.flows.downstream.last = first, last
    opened.record(NOW + 5)
    assert found == [(NOW + 5, ConnectionState.OPEN, 0, 0, False, NOW + time)]


def test_the_record_of_one_that_ends_meanwhile(opened):
    opened.summary.received, opened.summary.sent = 1, 2
    opened.flows = SimpleNamespace()
    assert (opened.record(NOW).received, opened.record(NOW).sent) == (1, 2)
    assert opened.bytes_moved() == (1, 2, 0, 0)


def test_the_record_of_one_that_is_over(opened):
    opened.flows.upstream.moved = 10
    opened.flows.upstream.spliced, opened.flows.upstream.bytes_spliced = True, 7
    opened.close("done", NOW)
    record = opened.record(NOW + 5)
    assert (record.received, record.engine, record.state, record.age) == (10, "splice", "closed", NOW - BEGUN)
    assert opened.bytes_moved() == (10, 0, 7, 0)


def test_its_text(one):
    assert repr(one) == "<connection from 192.0.2.7:5 to None: connecting>"
    one.summary.target = "db:5432"
    one.close("idle", NOW)
    assert repr(one) == "<connection from 192.0.2.7:5 to db:5432: idle>"
