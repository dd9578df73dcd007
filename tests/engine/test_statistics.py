"""``relay.engine.statistics``: the figures of a tunnel, its last connections, and a log line for each."""

import gc
import logging
from types import SimpleNamespace

import pytest

from relay.addresses.ssh import SSHServer
from relay.engine.outlets import Outlets
from relay.engine.records import REASONS, ConnectionState, ConnectionSummary, WarmFigures
from relay.engine.statistics import AGES, RECENT, Statistics
from relay.eventloop.histogram import CONNECT_TIMES
from relay.streams.stream import StreamPath


def ended(reason, received=3, sent=5, peer=("10.0.0.1", 1), on_record=lambda: None, **figures):
    """A connection that has ended."""
    summary = ConnectionSummary(peer, 100.0)
    summary.reason, summary.received, summary.sent, summary.finished = reason, received, sent, 102.5
    summary.target = ("db", 5432)
    for name, figure in figures.items():
        setattr(summary, name, figure)

    def record(now):
        assert now == summary.finished
        on_record()
        return summary.record(now, ConnectionState.CLOSED)

    return SimpleNamespace(summary=summary, record=record)


def living(state, *moved):
    """A connection that is open."""
    return SimpleNamespace(state=state, bytes_moved=lambda: moved)


WARM = StreamPath((), warm=True)
MOST_WAITING = 100  # ended connections whose figures are not added up yet


@pytest.fixture
def statistics():
    return Statistics("t", 60.0, None)


def test_the_figures_are_those_of_ended_and_open_connections(statistics):
    metrics = statistics.metrics([])
    assert metrics.stats() == (0, 0, 0, 0, {}, 0, 0)
    assert (metrics.spliced_received, metrics.spliced_sent, metrics.warm) == (0, 0, None)
    statistics.accepted = 5
    for reason in ("done", "closed", "refused", "refused", "idle"):
        statistics.add(ended(reason))
    stats = statistics.metrics([living(ConnectionState.OPEN, 100, 200, 0, 0)]).stats()
    assert stats == (5, 1, 115, 225, {"refused": 2, "idle": 1}, 0, 0)


def test_the_last_hundred_are_remembered(statistics):
    for number in range(105):
        statistics.add(ended("done", received=number))
    assert [record.received for record in statistics.recent()] == list(range(5, 105))


@pytest.mark.parametrize(
    ("reason", "figures", "line"),
    [
        ("idle", {}, "10.0.0.1:1 -> db:5432: idle after 2.500 s, 3 B received, 5 B sent, copy"),
        ("done", {"peer": ""}, "a local client -> db:5432: done after 2.500 s, 3 B received, 5 B sent, copy"),
        (
            "denied",
            {"received": 0, "sent": 0, "target": None, "rule": "deny cidr:10.0.0.0/8"},
            "10.0.0.1:1 -> nowhere: denied (deny cidr:10.0.0.0/8) after 2.500 s, 0 B received, 0 B sent, copy",
        ),
        ("done", {"path": WARM}, "10.0.0.1:1 -> db:5432: done after 2.500 s, 3 B received, 5 B sent, copy, warm"),
        ("done", {"path": StreamPath(())}, "10.0.0.1:1 -> db:5432: done after 2.500 s, 3 B received, 5 B sent, copy"),
    ],
)
def test_each_end_is_a_line_in_the_log(statistics, caplog, reason, figures, line):
    caplog.set_level(logging.INFO, logger="relay")
    statistics.add(ended(reason, **figures))
    (record,) = caplog.records
    assert record.getMessage() == f"t: {line}"
    assert record.connection.reason == reason


@pytest.mark.parametrize(("peer", "client"), [(("10.0.0.1", 1), "10.0.0.1:1"), ("", "a local client")])
def test_the_first_end_by_the_lifetime_is_a_warning(statistics, caplog, peer, client):
    for _ in range(3):
        statistics.add(ended("lifetime", peer=peer))
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage() == (
        f"t: timeout: reset the connection of {client} after 60 s, the longest that one may last; "
        "timeout=None is no limit (logged once for a tunnel)"
    )


@pytest.mark.parametrize("reads", [1, 3, 1000])
def test_the_counters_are_the_same_however_many_are_added_up_at_once(statistics, reads):
    ends = [
        *(ended("done", opened=100.001 + number, spliced=(2, 1) if number % 2 else None) for number in range(7)),
        ended("denied", rule="access-list"),
        ended("refused", finished=100.0, dialed=99.0),
        ended("of a user's factory"),
    ]
    for number, end in enumerate(ends, start=1):
        statistics.add(end)
        if not number % reads:
            statistics.metrics([])
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


def test_a_forked_child_does_not_wait_for_a_reader_that_it_does_not_have(statistics):
    found = []

    def connections():
        statistics.after_fork()  # while a reader holds the lock
        found.append(statistics.metrics([]))
        yield living(ConnectionState.OPEN, 0, 0, 0, 0)

    statistics.accepted = 4
    statistics.metrics(connections())
    assert [metrics.accepted for metrics in found] == [4]


def test_the_relay_thread_does_not_wait_for_a_reader(statistics):
    def connections():
        for _ in range(MOST_WAITING):
            statistics.add(ended("idle"))  # the relay thread, while the reader holds the lock
        yield living(ConnectionState.OPEN, 0, 0, 0, 0)

    assert statistics.metrics(connections()).ended["idle"] == 0
    assert statistics.metrics([]).ended["idle"] == MOST_WAITING


def test_few_figures_wait_although_nobody_reads_them(statistics):
    def kept():
        return sum(isinstance(one, ConnectionSummary) for one in gc.get_objects())

    gc.collect()  # else what other tests have left goes meanwhile
    before, counts = kept(), []
    for _ in range(3):
        for more in (MOST_WAITING - 1, 1):
            for _ in range(more):
                statistics.add(ended("denied", rule="login"))
            counts.append(kept() - before)
    assert counts == [MOST_WAITING - 1, RECENT, *[RECENT + MOST_WAITING - 1, RECENT] * 2]


@pytest.mark.parametrize("is_read", [False, True])
def test_a_connection_whose_figures_are_added_up_at_once_is_counted(statistics, is_read):
    if is_read:
        statistics.metrics([])  # its last moment: it is not open any more, and has not been counted yet
    for _ in range(MOST_WAITING):
        statistics.add(ended("done"))
    metrics = statistics.metrics([])
    assert (metrics.ended["done"], metrics.received, metrics.sent) == (100, 300, 500)


def test_the_access_log_gets_the_connections_of_all_tunnels():
    found, outlets = [], Outlets()
    observers = {"a": SimpleNamespace(put=lambda record: None), "b": None}
    logs = [Statistics(name, None, observer, outlets) for name, observer in observers.items()]

    def change(log):
        """Set or close it while a connection ends: this one is not concerned."""
        return lambda: setattr(outlets, "on_ended", log)

    logs[0].add(ended("refused", on_record=change(lambda name, record: found.append((name, record.reason)))))
    logs[0].add(ended("idle"))
    logs[1].add(ended("done", on_record=change(None)))
    logs[0].add(ended("done"))
    logs[1].add(ended("done", on_record=lambda: 1 / 0))  # to make a record takes time, and nothing would get it
    Statistics("c", None, None).add(ended("done"))
    assert found == [("a", "idle"), ("b", "done")]


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
