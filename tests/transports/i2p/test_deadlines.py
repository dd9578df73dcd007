"""``relay.transports.i2p.deadlines``: deadlines that any thread sets and drops."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from helpers import WAIT, wait_until

from relay.eventloop.background import IOThread
from relay.transports.i2p.deadlines import Deadlines


class Item:
    """Remembers when its time came."""

    def __init__(self):
        self.expired = threading.Event()
        self.times = []

    def expire(self, now):
        assert threading.current_thread().name == "relay-io"
        self.times.append(now)
        self.expired.set()


@pytest.fixture
def io_thread():
    member = object()
    io_thread = IOThread.acquire(member)
    yield io_thread
    io_thread.release(member)


@pytest.fixture
def deadlines(io_thread):
    return Deadlines(io_thread.loop)


@contextlib.contextmanager
def held(io_thread):
    """Its thread does nothing meanwhile: no time comes between two lines of a test."""
    stopped, go = threading.Event(), threading.Event()
    io_thread.loop.call(lambda: stopped.set() or go.wait(WAIT))
    assert stopped.wait(WAIT)
    yield
    go.set()


def test_the_time_comes_once(deadlines):
    item = Item()
    due = time.monotonic() + 0.05
    deadlines.set(item, due)
    assert item.expired.wait(WAIT)
    threading.Event().wait(0.1)
    (when,) = item.times
    assert due <= when


def test_what_is_dropped_does_not_expire(io_thread, deadlines):
    dropped, kept = Item(), Item()
    with held(io_thread):
        for item in (dropped, kept):
            deadlines.set(item, time.monotonic() + 0.03)
        deadlines.drop(dropped)
        deadlines.drop(dropped)
    assert kept.expired.wait(WAIT)
    assert not dropped.times


def test_a_new_time_replaces_the_old_one(io_thread, deadlines):
    later, sooner = Item(), Item()
    with held(io_thread):
        deadlines.set(later, time.monotonic() + 0.02)
        deadlines.set(later, time.monotonic() + 60)
    deadlines.set(sooner, time.monotonic() + 60)
    deadlines.set(sooner, time.monotonic() + 0.05)
    assert sooner.expired.wait(WAIT)
    assert not later.times


def test_each_has_its_own_time(deadlines):
    items = [Item() for _ in range(5)]
    begun = time.monotonic()
    for number, item in enumerate(items[::-1]):
        deadlines.set(item, begun + 0.05 * (5 - number))
    for number, item in enumerate(items):
        assert item.expired.wait(WAIT)
        assert begun + 0.05 * (number + 1) <= item.times[0]


def test_times_that_have_passed_come_at_once(deadlines):
    item = Item()
    deadlines.set(item, 0.0)
    assert item.expired.wait(WAIT)


def test_only_the_first_time_wakes_anybody(io_thread, deadlines, monkeypatch):
    deadlines.set(Item(), time.monotonic() + 60)
    calls = []
    monkeypatch.setattr(io_thread.loop, "call", calls.append)
    for _ in range(1000):
        item = Item()
        deadlines.set(item, time.monotonic() + 61)
        deadlines.drop(item)
    assert not calls
    deadlines.set(Item(), time.monotonic() + 59)
    assert len(calls) == 1


def test_nobody_is_woken_for_nothing(io_thread, deadlines):
    item = Item()
    deadlines.set(item, time.monotonic() + 0.02)
    deadlines.drop(item)
    wait_until(lambda: deadlines._timer.due == float("inf") and deadlines._next == float("inf"))
    looked = threading.Event()
    io_thread.loop.call(lambda: io_thread.loop.timers.first == float("inf") and looked.set())
    assert looked.wait(WAIT)


def test_a_bug_of_one_harms_no_other(deadlines, caplog):
    class Broken(Item):
        def expire(self, now):
            raise RuntimeError("a bug")

    item = Item()
    due = time.monotonic() + 0.02
    deadlines.set(Broken(), due)
    deadlines.set(item, due)
    assert item.expired.wait(WAIT)
    assert "a bug" in caplog.text


def test_one_that_sets_itself_again_comes_again(deadlines):
    class Again(Item):
        def expire(self, now):
            super().expire(now)
            if len(self.times) < 3:
                self.expired.clear()
                deadlines.set(self, now + 0.01)

    item = Again()
    deadlines.set(item, time.monotonic())
    wait_until(lambda: len(item.times) == 3)


def test_those_that_expire_one_by_one_are_looked_at_together(io_thread, deadlines, monkeypatch):
    looks = []
    arm = deadlines._arm
    monkeypatch.setattr(deadlines, "_arm", lambda: (looks.append(1), arm()))
    items = [Item() for _ in range(300)]
    with held(io_thread):
        begun = time.monotonic()
        for number, item in enumerate(items):
            deadlines.set(item, begun + 0.1 + number * 0.001)
    assert all(item.expired.wait(WAIT) for item in items)
    assert len(looks) < 40


def test_many_threads_set_and_drop(deadlines):
    items = [Item() for _ in range(200)]

    def work(part):
        for item in part:
            deadlines.set(item, time.monotonic() + 0.01)
            other = Item()
            deadlines.set(other, time.monotonic() + 0.01)
            deadlines.drop(other)

    threads = [threading.Thread(target=work, args=(items[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert all(item.expired.wait(WAIT) for item in items)
    assert not deadlines._due
