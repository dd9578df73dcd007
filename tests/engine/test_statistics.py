"""``relay.engine.statistics``: the figures of a tunnel, its last connections, and a log line for each."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from relay.engine.records import ConnectionState, ConnectionSummary
from relay.engine.statistics import Statistics


def ended(reason, received=3, sent=5, peer=("10.0.0.1", 1)):
    """A connection that has ended."""
    summary = ConnectionSummary(peer, 100.0)
    summary.reason, summary.received, summary.sent, summary.finished = reason, received, sent, 102.5
    summary.target = ("db", 5432)
    return SimpleNamespace(summary=summary, record=lambda now: summary.record(now, ConnectionState.CLOSED))


@pytest.fixture
def statistics():
    return Statistics("t", 60.0, None)


def test_the_figures_are_those_of_ended_and_open_connections(statistics):
    statistics.accepted = 5
    for reason in ("done", "closed", "refused", "refused", "idle"):
        statistics.add(ended(reason))
    stats = statistics.stats([ended("done", received=100, sent=200).record(0.0)])
    assert stats == (5, 1, 115, 225, {"refused": 2, "idle": 1})


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
    text = "10.0.0.1:1 -> db:5432: idle after 2.500 s, 3 bytes received, 5 sent, copy"
    assert first.getMessage() == f"t: {text}" and first.connection.reason == "idle"
    assert second.getMessage().startswith("t: a local client -> db:5432: done")


def test_the_first_end_by_the_lifetime_is_a_warning(statistics, caplog):
    for _ in range(3):
        statistics.add(ended("lifetime"))
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "timeout: reset the connection of 10.0.0.1:1 after 60 s" in warning.getMessage()
