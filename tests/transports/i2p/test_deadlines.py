"""``relay.transports.i2p.deadlines``: deadlines that any thread sets and drops, on a loop that the test turns."""

import math
import time

import pytest
from helpers import Thread

from relay.eventloop.loop import Timers
from relay.transports.i2p.deadlines import Deadlines


class HandLoop:
    """A loop that does nothing between two turns."""

    def __init__(self):
        self.timers = Timers()
        self.begun = time.monotonic()
        self.calls = []
        self.call = self.calls.append

    def turn(self, seconds):
        """Do what is due so many seconds after the beginning."""
        while self.calls:
            self.calls.pop(0)()
        self.timers.run(self.begun + seconds)


class Item:
    """Remembers when its time came, in seconds after the beginning."""

    def __init__(self, loop):
        self.loop = loop
        self.times = []

    def expire(self, now):
        self.times.append(round(now - self.loop.begun, 3))


@pytest.fixture
def loop():
    return HandLoop()


@pytest.fixture
def set_in(loop):
    """Sets the deadline of an item, in seconds after the beginning."""
    deadlines = Deadlines(loop)

    def set_in(seconds, item=None):
        item = item or Item(loop)
        deadlines.set(item, loop.begun + seconds)
        return item

    set_in.drop = deadlines.drop
    return set_in


def test_each_time_comes_once_and_not_before(loop, set_in):
    items = [set_in(seconds) for seconds in (3, 1, -1)]
    for now in (0, 0.9, 1.1, 2.9, 3.1, 9):
        loop.turn(now)
    assert [item.times for item in items] == [[3.1], [1.1], [0]]


def test_what_is_dropped_does_not_expire_and_a_new_time_replaces_the_old_one(loop, set_in):
    dropped, kept, later, sooner = (set_in(seconds) for seconds in (1, 1, 1, 60))
    set_in.drop(dropped)
    set_in.drop(dropped)
    set_in(30, later)
    set_in(1, sooner)
    loop.turn(1.1)
    assert (dropped.times, kept.times, later.times, sooner.times) == ([], [1.1], [], [1.1])


def test_only_the_first_time_wakes_anybody(loop, set_in):
    set_in(60)
    loop.turn(0)
    for _ in range(1000):
        set_in.drop(set_in(61))
    assert not loop.calls
    set_in(59)
    assert len(loop.calls) == 1


def test_nobody_is_woken_for_nothing(loop, set_in):
    set_in.drop(set_in(1))
    loop.turn(1.1)
    assert loop.timers.first == math.inf
    late = set_in(2)  # it is the first one again
    loop.turn(2.1)
    assert late.times == [2.1]


def test_a_bug_of_one_harms_no_other(loop, set_in, caplog):
    class Broken(Item):
        def expire(self, now):
            raise RuntimeError("a bug")

    set_in(1, Broken(loop))
    item = set_in(1)
    loop.turn(1.1)
    assert item.times == [1.1]
    assert "a bug" in caplog.text


def test_those_that_expire_one_by_one_are_looked_at_together(loop, set_in):
    items = [set_in(0.1 + number * 0.001) for number in range(300)]
    for now in range(450):
        loop.turn(now * 0.001)
    assert 2 < len({item.times[0] for item in items}) < 40


def test_many_threads_set_and_drop(loop, set_in):
    def work():
        items = []
        for _ in range(200):
            items.append(set_in(1))
            set_in.drop(set_in(1))
        return items

    threads = [Thread(work) for _ in range(4)]
    items = [item for thread in threads for item in thread.result()]
    loop.turn(1.1)
    assert all(item.times == [1.1] for item in items)
