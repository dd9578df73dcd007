"""``relay.engine.statistics``: the figures of a tunnel, its last connections, and a log line for each."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from relay.addresses.ssh import SSHServer
from relay.engine import statistics as module
from relay.engine.outlets import Outlets
from relay.engine.records import REASONS, ConnectionState, ConnectionSummary, WarmFigures
from relay.engine.statistics import AGES, Statistics
from relay.eventloop.histogram import CONNECT_TIMES
from relay.streams.path import StreamPath


def ended(reason, received=3, sent=5, peer=("10.0.0.1", 1), **figures):
    """A connection that has ended."""
    summary = ConnectionSummary(peer, 100.0)
    summary.reason, summary.received, summary.sent, summary.finished = reason, received, sent, 102.5
    summary.target = ("db", 5432)
    for name, figure in figures.items():
        setattr(summary, name, figure)

    def record(now):
        assert now == summary.finished
        return summary.record(now, ConnectionState.CLOSED)

    return SimpleNamespace(summary=summary, record=record)


def living(state, *moved):
    """A connection that is open."""
    return SimpleNamespace(state=state, bytes_moved=lambda: moved)


@pytest.fixture
def statistics():
    return Statistics("t", 60.0, None)


def test_the_figures_are_those_of_ended_and_open_connections(statistics):
    statistics.accepted = 5
    for reason in ("done", "closed", "refused", "refused", "idle"):
        statistics.add(ended(reason))
    stats = statistics.metrics([living(ConnectionState.OPEN, 100, 200, 0, 0)]).stats()
    assert stats == (5, 1, 115, 225, {"refused": 2, "idle": 1}, 0, 0)


def test_a_new_tunnel_has_no_figures(statistics):
    metrics = statistics.metrics([])
    assert metrics.stats() == (0, 0, 0, 0, {}, 0, 0)
    assert (metrics.spliced_received, metrics.spliced_sent, metrics.warm) == (0, 0, None)


def test_the_last_hundred_are_remembered(statistics):
    for number in range(105):
        statistics.add(ended("done", received=number))
    assert [record.received for record in statistics.recent()] == list(range(5, 105))


def test_an_observer_gets_each_record():
    records = []
    statistics = Statistics("t", None, SimpleNamespace(put=records.append))
    statistics.add(ended("done"))
    assert [(record.reason, record.age) for record in records] == [("done", 2.5)]


def test_each_end_is_a_line_in_the_log(statistics, caplog):
    caplog.set_level(logging.INFO, logger="relay")
    statistics.add(ended("idle"))
    statistics.add(ended("done", peer=""))
    first, second = caplog.records
    text = "10.0.0.1:1 -> db:5432: idle after 2.500 s, 3 B received, 5 B sent, copy"
    assert first.getMessage() == f"t: {text}" and first.connection.reason == "idle"
    assert second.getMessage().startswith("t: a local client -> db:5432: done")


def test_the_line_of_a_denied_client_has_the_rule_and_no_target(statistics, caplog):
    caplog.set_level(logging.INFO, logger="relay")
    statistics.add(ended("denied", 0, 0, target=None, rule="deny cidr:10.0.0.0/8"))
    (line,) = caplog.records
    text = "10.0.0.1:1 -> nowhere: denied (deny cidr:10.0.0.0/8) after 2.500 s, 0 B received, 0 B sent, copy"
    assert line.getMessage() == f"t: {text}"


def test_the_line_of_a_connection_says_whether_its_stream_was_warm(statistics, caplog):
    caplog.set_level(logging.INFO, logger="relay")
    statistics.add(ended("done", opened=100.0, path=StreamPath((), warm=True)))
    statistics.add(ended("done", opened=100.0, path=StreamPath(())))
    warm, other = caplog.records
    assert warm.getMessage().endswith("5 B sent, copy, warm") and other.getMessage().endswith("5 B sent, copy")


def test_the_first_end_by_the_lifetime_is_a_warning(statistics, caplog):
    for _ in range(3):
        statistics.add(ended("lifetime"))
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage() == (
        "t: timeout: reset the connection of 10.0.0.1:1 after 60 s, the longest that one may last; "
        "timeout=None is no limit (logged once for a tunnel)"
    )


def test_the_warning_of_the_lifetime_names_a_client_without_an_address(statistics, caplog):
    statistics.add(ended("lifetime", peer=""))
    assert "reset the connection of a local client after 60 s" in caplog.text


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_the_counters_are_the_same_however_many_are_added_up_at_once(monkeypatch, most):
    monkeypatch.setattr(module, "_MOST_WAITING", most)
    statistics = Statistics("t", 60.0, None)
    for number in range(7):
        statistics.add(ended("done", opened=100.001 + number, spliced=(2, 1) if number % 2 else None))
    statistics.add(ended("denied", rule="access-list"))
    statistics.add(ended("refused", finished=100.0, dialed=99.0))
    statistics.add(ended("of a user's factory"))
    states = (ConnectionState.CONNECTING, ConnectionState.OPEN, ConnectionState.OPEN, ConnectionState.DISCARDING)
    metrics = statistics.metrics([living(state, 10, 20, 1, 2) for state in (*states, ConnectionState.CLOSED)])
    assert {reason: count for reason, count in metrics.ended.items() if count} == {
        "done": 7, "denied": 1, "refused": 1, "of a user's factory": 1,
    }  # fmt: skip
    assert set(REASONS) < set(metrics.ended)
    assert metrics.states == {"connecting": 1, "open": 2, "half-closed": 1}
    assert (metrics.received, metrics.sent) == (3 * 10 + 10 * 5, 5 * 10 + 20 * 5)
    assert (metrics.spliced_received, metrics.spliced_sent) == (6 + 5, 3 + 10)
    assert metrics.denied == {"access-list": 1, "login": 0}
    assert metrics.ages.counts == (1, 0, 9, 0, 0, 0, 0, 0) and metrics.ages.total == pytest.approx(9 * 2.5)
    assert len(metrics.connect_times.counts) == len(CONNECT_TIMES) + 1
    assert metrics.connect_times.counts == (0, 1, 0, 0, 0, 2, 4, 0, 0, 0)
    assert metrics.connect_times.total == pytest.approx(21.007)
    assert metrics.hop_times == {"1:target": metrics.connect_times}


def test_the_parts_of_a_connect_are_counted_by_hop(statistics):
    route = (SSHServer("a"),)
    waited = StreamPath(((1, 3.0), (2, 0.002)), "ssh://a")
    at_once = StreamPath(((2, 0.002),), "ssh://a")
    for path in (waited, at_once, None):
        statistics.add(ended("done", opened=101.0, path=path, route=route if path else ()))
    metrics = statistics.metrics([])
    times = {hop: (sum(found.counts), round(found.total, 6)) for hop, found in metrics.hop_times.items()}
    assert times == {"1:target": (1, 1.0), "1:ssh": (1, 3.0), "2:target": (2, 0.004)}
    assert (sum(metrics.connect_times.counts), metrics.connect_times.total) == (3, 3.0)
    assert [record.hop_times for record in statistics.recent()] == [
        (("1:ssh", 3.0), ("2:target", 0.002)),
        (("2:target", 0.002),),
        (("1:target", 1.0),),
    ]


@pytest.mark.parametrize(("age", "index"), [(0.0, 0), (0.1, 0), (0.11, 1), (86400.0, 6), (1e9, 7)])
def test_a_bound_belongs_to_the_sizes_below_it(statistics, age, index):
    statistics.add(ended("done", started=0.0, finished=age))
    assert statistics.metrics([]).ages.counts == tuple(int(n == index) for n in range(len(AGES) + 1))


def test_a_counter_never_decreases_when_a_connection_ends_while_it_is_read(statistics):
    before = statistics.metrics([living(ConnectionState.OPEN, 100, 200, 50, 0)])
    # Now it is open no longer, and its end is not counted yet.
    between = statistics.metrics([])
    statistics.add(ended("done", received=110, sent=200, spliced=(60, 0)))
    after = statistics.metrics([])
    figures = [(one.received, one.sent, one.spliced_received, one.spliced_sent) for one in (before, between, after)]
    assert figures == [(100, 200, 50, 0), (100, 200, 50, 0), (110, 200, 60, 0)]


def test_a_stream_that_was_lost_before_it_was_open_has_no_connect_time(statistics):
    statistics.add(ended("carrier_lost", path=StreamPath(((1, 3.0),), "ssh://a"), route=(SSHServer("a"),)))
    metrics = statistics.metrics([])
    assert sum(metrics.connect_times.counts) == 0 and metrics.hop_times == {}


def test_a_connection_that_is_not_counted_yet_is_open_no_longer(statistics):
    assert statistics.metrics([living(ConnectionState.OPEN, 1, 1, 0, 0)]).states["open"] == 1
    assert statistics.metrics([]).states["open"] == 0


def test_a_connection_whose_figures_are_added_up_at_once_is_counted(monkeypatch, statistics):
    monkeypatch.setattr(module, "_MOST_WAITING", 1)
    statistics.accepted = 1
    statistics.metrics([])  # its last moment: it is not open any more, and has not been counted yet
    statistics.add(ended("done"))
    metrics = statistics.metrics([])
    assert (metrics.ended["done"], metrics.received, metrics.sent) == (1, 3, 5)


def test_few_figures_wait_although_nobody_reads_them(monkeypatch, statistics):
    monkeypatch.setattr(module, "_MOST_WAITING", 3)
    waiting = []
    for _ in range(7):
        statistics.add(ended("done"))
        waiting.append(len(statistics._waiting))
    assert waiting == [1, 2, 0, 1, 2, 0, 1]


def test_a_forked_child_does_not_wait_for_a_reader_that_it_does_not_have(statistics):
    found = []

    def connections():
        statistics.after_fork()  # while a reader holds the lock
        found.append(statistics.metrics([]))
        yield living(ConnectionState.OPEN, 0, 0, 0, 0)

    statistics.accepted = 4
    statistics.metrics(connections())
    assert [metrics.accepted for metrics in found] == [4]


def test_the_relay_thread_does_not_wait_for_a_reader(monkeypatch, statistics):
    monkeypatch.setattr(module, "_MOST_WAITING", 1)

    def connections():
        statistics.add(ended("idle"))  # the relay thread, while the reader holds the lock
        yield living(ConnectionState.OPEN, 0, 0, 0, 0)

    assert statistics.metrics(connections()).ended["idle"] == 0
    assert statistics.metrics([]).ended["idle"] == 1


def test_the_access_log_gets_the_connections_of_all_tunnels():
    found = []
    outlets = Outlets(lambda name, record: found.append((name, record.reason)))
    first, second = Statistics("a", None, None, outlets), Statistics("b", None, None, outlets)
    first.add(ended("idle"))
    second.add(ended("done"))
    outlets.on_ended = None
    first.add(ended("done"))
    Statistics("c", None, None).add(ended("done"))
    assert found == [("a", "idle"), ("b", "done")]


def test_an_access_log_that_is_set_while_a_connection_ends_gets_the_next_one(monkeypatch):
    found, outlets = [], Outlets()
    statistics = Statistics("t", 60.0, None, outlets)

    def warning(*arguments):
        outlets.on_ended = lambda name, record: found.append(record.reason)

    monkeypatch.setattr(module.logger, "warning", warning)
    statistics.add(ended("lifetime"))
    statistics.add(ended("done"))
    assert found == ["done"]


def test_an_access_log_that_is_closed_while_a_connection_ends_gets_that_one(monkeypatch):
    """It is another thread that closes it."""
    found = []
    outlets = Outlets(lambda name, record: found.append(record.reason))
    statistics = Statistics("t", 60.0, None, outlets)
    monkeypatch.setattr(module.logger, "warning", lambda *arguments: setattr(outlets, "on_ended", None))
    statistics.add(ended("lifetime"))
    statistics.add(ended("done"))
    assert found == ["lifetime"]


def test_the_figures_of_warm_streams_are_those_of_now_in_an_idle_tunnel(statistics):
    before, after = WarmFigures(1, 0, 0, 0, 0), WarmFigures(2, 0, 1, 0, 0)
    first = statistics.metrics([], before)
    assert first.warm == before and statistics.metrics([], before) is first
    second = statistics.metrics([], after)
    assert second.warm == after and second._replace(warm=before) == first


def test_the_figures_of_an_idle_tunnel_are_made_once(statistics):
    first = statistics.metrics([])
    assert statistics.metrics([]) is first
    statistics.accepted += 1
    second = statistics.metrics([living(ConnectionState.OPEN, 1, 1, 0, 0)])
    assert (second.accepted, second.states["open"]) == (1, 1)
    statistics.add(ended("done"))
    third = statistics.metrics([])
    assert (third.ended["done"], third.received) == (1, 3) and statistics.metrics([]) is third
    statistics.accept_errors["EMFILE"] += 1
    assert statistics.metrics([]).accept_errors == {"EMFILE": 1}
    assert third.accept_errors == {}


def test_rules_beyond_a_hundred_are_counted_together(statistics):
    for number in range(1000):
        statistics.add(ended("denied", rule=f"deny cidr:10.0.{number // 256}.{number % 256}"))
    statistics.add(ended("denied", rule="deny cidr:10.0.0.0"))
    denied = statistics.metrics([]).denied
    assert len(denied) == 101 and sum(denied.values()) == 1001
    assert denied["other"] == 902 and denied["deny cidr:10.0.0.0"] == 2
