"""The notes of a connection, and the record and the figures that are made of it."""

from types import SimpleNamespace

import pytest

import relay
from relay.addresses.parse import parse_hop
from relay.engine.connection_id import epoch, id_of
from relay.engine.records import (
    DIRECT,
    REASONS,
    ConnectionRecord,
    ConnectionState,
    ConnectionSummary,
    Metrics,
    Stats,
    WarmFigures,
)
from relay.eventloop.histogram import Histogram
from relay.streams.stream import Request, Resumes, StreamPath

PEER = ("192.0.2.7", 5)
ROUTE = (parse_hop("socks5://192.0.2.1:1080"),)


@pytest.fixture
def summary():
    return ConnectionSummary(PEER, 100.0)


def test_a_summary_begins_with_nothing_but_its_client(summary):
    assert (summary.peer, summary.started) == (PEER, 100.0)
    assert [getattr(summary, name) for name in ("dialed", "opened", "first_byte", "finished")] == [0.0] * 4
    assert [getattr(summary, name) for name in ("received", "sent")] == [0, 0]
    names = "target", "request", "spliced", "reason", "rule", "path", "identity", "header", "server_name"
    assert [getattr(summary, name) for name in names] == [None] * 9
    assert summary.target_ended_first is False
    assert summary.route == ()
    assert ConnectionSummary(PEER, 100.0).number == summary.number + 1


def test_the_record_of_a_connection_that_was_just_accepted(summary):
    assert summary.record(101.5, ConnectionState.CONNECTING) == ConnectionRecord(
        PEER,
        None,
        1.5,
        0,
        0,
        "copy",
        "connecting",
        id=id_of(summary.number, 100.0),
        started=epoch(100.0),
        identity=relay.Identity("tcp", "192.0.2.7", "192.0.2.7", 5),
    )


def test_the_record_of_a_connection_that_has_ended(summary):
    summary.target = ("198.51.100.1", 443)
    summary.dialed, summary.opened, summary.first_byte, summary.finished = 101.0, 103.0, 104.5, 110.0
    summary.received, summary.sent, summary.spliced = 7, 8, (0, 0)
    summary.reason, summary.rule = "denied", "deny 192.0.2.0/24"
    summary.path = StreamPath(((1, 0.5), (2, 1.5)), "socks5://192.0.2.1:1080", 3, True)
    summary.route = ROUTE
    summary.identity = relay.Identity("tls", "alice")
    summary.header = SimpleNamespace(unique_id="an id")
    summary.server_name = "db.example"
    assert summary.record(200.0, ConnectionState.CLOSED) == ConnectionRecord(
        peer=PEER,
        target="198.51.100.1:443",
        age=10.0,
        received=7,
        sent=8,
        engine="splice",
        state="closed",
        reason="denied",
        id=id_of(summary.number, 100.0),
        started=epoch(100.0),
        connect_time=2.0,
        first_byte=4.5,
        by="relay",
        rule="deny 192.0.2.0/24",
        hop_times=(("1:socks5", 0.5), ("2:target", 1.5)),
        carrier="socks5://192.0.2.1:1080",
        attempts=3,
        warm=True,
        identity=relay.Identity("tls", "alice"),
        server_name="db.example",
        unique_id="an id",
    )


def test_a_record_may_have_the_figures_of_the_moment(summary):
    record = summary.record_of(105.0, ConnectionState.HALF_CLOSED, 1, 2, True, 100.25)
    assert (record.received, record.sent, record.engine, record.first_byte) == (1, 2, "splice", 0.25)
    assert (record.state, record.age) == ("half-closed", 5.0)


def test_a_stream_that_goes_on_over_another_carrier_is_counted_while_it_is_open(summary):
    summary.path = StreamPath((), resumes=Resumes())
    assert summary.record(101.0, ConnectionState.OPEN).resumes == 0
    summary.path.resumes.count = 3
    assert summary.record(102.0, ConnectionState.OPEN).resumes == 3


def test_a_path_that_was_not_kept_ready(summary):
    summary.path = StreamPath(())
    record = summary.record(101.0, ConnectionState.OPEN)
    assert (record.carrier, record.attempts, record.warm) == (None, 1, False)


@pytest.mark.parametrize(("dialed", "seconds"), [(0.0, 3.0), (102.0, 1.0)])
def test_without_hops_the_connect_has_one_part(summary, dialed, seconds):
    assert (summary.connect_time, summary.hop_times()) == (None, ())
    summary.dialed, summary.opened = dialed, 103.0
    assert summary.connect_time == seconds
    assert summary.hop_times() == ((DIRECT, seconds),)


def test_a_connect_by_hops_that_is_not_over_has_no_parts(summary):
    summary.path, summary.route = StreamPath(((1, 0.5),)), ROUTE
    assert summary.hop_times() == ()


@pytest.mark.parametrize(
    ("reason", "target_first", "by"),
    [
        (None, True, None),
        ("done", True, "target"),
        ("done", False, "client"),
        ("target_reset", False, "target"),
        ("killed", False, "admin"),
        ("a word of a factory", False, "relay"),
    ],
)
def test_who_ended_it(summary, reason, target_first, by):
    summary.reason, summary.target_ended_first = reason, target_first
    assert summary.record(101.0, ConnectionState.CLOSED).by == by


def request(login=None):
    return Request("db.example", 5432, b"", lambda reason: b"", login=login)


def test_the_target_is_the_stream_or_what_the_client_has_asked_for(summary):
    assert summary.target_name() is None
    summary.request = request()
    assert summary.target_name() == "db.example:5432"
    summary.target = ("198.51.100.1", 443)
    assert summary.target_name() == "198.51.100.1:443"


def test_who_the_client_is(summary):
    assert summary.who() == relay.Identity("tcp", "192.0.2.7", "192.0.2.7", 5)
    summary.request = request()
    assert summary.who() == relay.Identity("tcp", "192.0.2.7", "192.0.2.7", 5)
    summary.request = request(("socks", "alice"))
    assert summary.who() == relay.Identity("socks", "alice", "192.0.2.7", 5, login="alice")
    summary.identity = relay.Identity("tls", "bob")
    assert summary.who() == relay.Identity("socks", "alice", login="alice")


def test_a_client_without_an_address_may_log_in_too():
    summary = ConnectionSummary("", 0.0)
    assert summary.who() is None
    summary.request = request(("http", "alice"))
    assert summary.who() == relay.Identity("http", "alice", login="alice")


def test_the_header_of_a_balancer_may_have_come_before_the_handshake():
    early, late = object(), object()
    summary = ConnectionSummary(SimpleNamespace(header=early), 0.0)
    assert summary.reported() is early
    summary.header = late
    assert summary.reported() is late
    assert ConnectionSummary(PEER, 0.0).reported() is None


@pytest.mark.parametrize(
    ("peer", "identity", "text"),
    [
        (PEER, None, "192.0.2.7:5"),
        ("", None, "a local client"),
        (PEER, relay.Identity("tls", "alice"), "192.0.2.7:5 (tls:alice)"),
        ("", relay.Identity("unix", "root"), "unix:root"),
    ],
)
def test_the_client_in_a_log(summary, peer, identity, text):
    record = summary.record(101.0, ConnectionState.OPEN)
    assert record._replace(peer=peer, identity=identity).client == text


WARM = WarmFigures(ready=1, hits=2, misses=3, ended=4, expired=5)


@pytest.mark.parametrize(("warm", "hits", "misses"), [(None, 0, 0), (WARM, 2, 3)])
def test_the_figures_that_users_see(warm, hits, misses):
    ended = dict.fromkeys(REASONS, 0) | {"done": 4, "closed": 5, "refused": 6, "killed": 1}
    states = {"connecting": 1, "open": 2, "half-closed": 4}
    none = Histogram((), 0.0)
    metrics = Metrics(100, states, ended, 11, 12, 13, 14, none, none, {}, {}, {}, warm)
    assert metrics.stats() == Stats(100, 7, 11, 12, {"refused": 6, "killed": 1}, hits, misses)


def test_the_state_of_a_record_is_one_of_four_words():
    assert {state.reported for state in ConnectionState} == {"connecting", "open", "half-closed", "closed"}
    assert [state.reported for state in ConnectionState if state.text == state.reported] == [
        "connecting",
        "open",
        "half-closed",
        "closed",
    ]
