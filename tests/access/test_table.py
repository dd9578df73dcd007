"""The bounded table of keys, and the numbers of an entry."""

from __future__ import annotations

import math

from relay.access.limit import Rate
from relay.access.meter import Meter
from relay.access.table import MOST_KEYS, Entry, KeyTable
from relay.eventloop.loop import Timers


def test_two_hundred_thousand_addresses_keep_to_the_bound_and_the_clients_that_are_connected() -> None:
    table = KeyTable()
    table.get("connected").connected = 1
    table.get("recent").used = 5
    for number in range(200_000):
        table.get(str(number))
        if number % 50_000 == 0:
            table.get("recent")
    assert len(table) == MOST_KEYS
    assert table.get("connected").connected == 1 and table.get("recent").used == 5
    assert table.find("0") is None and table.find("199999") is not None


def test_more_connected_keys_than_the_bound_are_all_kept() -> None:
    table = KeyTable(most=10)
    for number in range(30):
        table.get(str(number)).connected = 1
    assert len(table) == 30
    for entry in table.all():
        entry.connected = 0
    table.get("new")
    assert len(table) == 30 and table.find("new") is not None


def test_forgetting() -> None:
    table = KeyTable()
    table.get("a")
    table.get("b").connected = 1
    for key in ("a", "b", "never"):
        table.forget(key)
    assert [entry.key for entry in table.all()] == ["b"]


def test_failures_count_within_their_time_only() -> None:
    entry, rate = Entry("a"), Rate(5, 60.0)
    assert (entry.period, entry.meters, entry.levels, entry.failures) == (-math.inf, None, None, None)
    assert (entry.arrival, entry.connected, entry.banned_until, entry.used, entry.marks) == (0.0, 0, 0.0, 0, 0)
    assert [entry.fail(rate, now) for now in (0.0, 15.0, 30.0, 45.0, 60.0)] == [False] * 5
    assert entry.fail(rate, 62.0) is True
    assert entry.fail(rate, 63.0) is False


def test_of_meters_that_are_dropped_the_levels_are_kept() -> None:
    entry, timers = Entry("a"), Timers()
    entry.drop_meters()
    assert entry.levels is None
    up, down = entry.meters = Meter(1e6, timers), Meter(2e6, timers)
    entry.drop_meters()
    assert (entry.meters, entry.levels) == (None, (*up.level, *down.level))
