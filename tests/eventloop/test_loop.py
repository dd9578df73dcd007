"""The loop: deadlines, calls from other threads, and bugs that must not end it."""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import math
import os
import select
import socket
import threading
from collections.abc import Iterator

import pytest
from helpers import WAIT, closed
from hypothesis import given
from hypothesis import strategies as st

from relay.eventloop import loop as loop_module
from relay.eventloop.background import Watch
from relay.eventloop.loop import Loop, Timer, Timers, expect_child
from relay.eventloop.poller import IN
from relay.process import start


class Item:
    def __init__(self) -> None:
        self.tick = 0
        self.expired: list[float] = []

    def expire(self, now: float) -> None:
        self.expired.append(now)


@pytest.fixture
def loop() -> Iterator[Loop]:
    yield from closed(Loop())


def test_a_deadline_is_never_early_and_at_most_a_tick_late() -> None:
    timers, item = Timers(), Item()
    timers.set(item, 105.0, 100.0)
    timers.run(104.999)
    assert item.expired == []
    timers.run(105.0 + 2 / 64)
    assert len(item.expired) == 1
    assert timers.first == math.inf


@given(st.lists(st.tuples(st.floats(0, 5000), st.booleans()), min_size=1, max_size=50))
def test_whatever_is_set_and_cancelled_the_rest_is_called(plan: list[tuple[float, bool]]) -> None:
    timers = Timers()
    items = []
    for seconds, _ in plan:
        items.append(Item())
        timers.set(items[-1], 1000 + seconds, 1000.0)
    for item, (_, cancelled) in zip(items, plan, strict=True):
        if cancelled:
            timers.cancel(item)
            timers.cancel(item)
    timers.run(6100.0)
    assert [len(item.expired) for item in items] == [0 if cancelled else 1 for _, cancelled in plan]
    assert timers.first == math.inf


def test_a_far_deadline_wakes_early_and_only_a_few_times() -> None:
    timers = Timers()
    called: list[float] = []
    timer = Timer(timers, called.append)
    timer.start(1000.0 + 3600, 1000.0)
    wakes = 0
    while not called:
        wakes += 1
        timers.run(timers.first)
    assert called[0] >= 4600.0
    assert called[0] < 4600.1
    assert wakes <= 4


def test_churn_leaves_nothing_behind() -> None:
    timers = Timers()
    stays = Item()
    timers.set(stays, 5000.0, 1000.0)
    for number in range(20_000):
        item = Item()
        timers.set(item, 1060.0 + number / 1000, 1000.0 + number / 1000)
        timers.cancel(item)
    assert len(timers._buckets) < 1100
    timers.cancel(stays)
    assert timers.first == math.inf


def test_cancelling_the_next_deadline_lets_the_loop_sleep_on() -> None:
    timers, near, far = Timers(), Item(), Item()
    timers.set(near, 1001.0, 1000.0)
    timers.set(far, 1010.0, 1000.0)
    timers.cancel(near)
    assert timers.first > 1009


def test_a_stopped_timer_does_not_call() -> None:
    timers = Timers()
    called: list[float] = []
    timer = Timer(timers, called.append)
    timer.start(1001.0, 1000.0)
    timer.stop()
    timer.expire(2000.0)
    timers.run(2000.0)
    assert called == []


def test_calls_come_in_order_from_any_thread(loop: Loop) -> None:
    seen: list[int] = []
    thread = threading.Thread(target=loop.run)
    thread.start()
    for number in range(1000):
        assert loop.call(lambda number=number: seen.append(number))  # type: ignore[misc]
    loop.call(loop.stop)
    thread.join(WAIT)
    assert seen == list(range(1000))
    assert not loop.call(lambda: seen.append(-1))


def test_a_call_that_is_accepted_is_made_even_if_the_loop_stops(loop: Loop) -> None:
    seen: list[str] = []
    loop.call(lambda: (loop.stop(), seen.append("stopped")))
    loop.call(lambda: seen.append("still"))
    loop.run()
    assert seen == ["stopped", "still"]


def test_a_bug_in_a_handler_ends_that_one_only(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    crashed: list[float] = []

    class Broken:
        def handle(self, event: int, now: float) -> None:
            raise RuntimeError("a bug")

        def crashed(self, now: float) -> None:
            crashed.append(now)
            loop.stop()

    with ours, theirs, caplog.at_level(logging.ERROR, "relay"):
        loop.watch(ours.fileno(), IN, Broken().handle)
        loop.call(lambda: 1 / 0)
        theirs.send(b"x")
        loop.run()
    assert len(crashed) == 1
    assert ours.fileno() not in loop.handlers
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


@pytest.mark.parametrize("by_turn", [True, False])
def test_an_event_of_a_closed_socket_does_not_meet_a_new_one_of_its_number(loop: Loop, by_turn: bool) -> None:
    near, far = zip(*(socket.socketpair() for _ in range(2)), strict=True)
    made: list[socket.socket] = []
    seen: list[tuple[str, int]] = []

    def close_the_other_one(mine: socket.socket, other: socket.socket) -> None:
        seen.append(("first", mine.fileno()))
        number = other.fileno()
        for one in (mine, other):
            loop.forget(one.fileno())
        other.close()
        one, its_end = socket.socketpair()  # the lowest number that is free
        made.extend((one, its_end))
        new = next(end for end in (one, its_end) if end.fileno() == number)
        loop.watch(new.fileno(), IN, lambda event, now: seen.append(("new", event)))
        loop.call(loop.stop)

    for mine, other in (near, near[::-1]):
        loop.watch(mine.fileno(), IN, lambda event, now, mine=mine, other=other: close_the_other_one(mine, other))
    for end in far:
        end.send(b"x")  # both are ready in the same turn
    if by_turn:
        loop.turn()
    else:
        loop.run()
    assert [name for name, _ in seen] == ["first"]
    for end in (*near, *far, *made):
        end.close()


def test_a_socket_is_closed_only_after_its_turn(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    states: list[bool] = []

    def handle(event: int, now: float) -> None:
        loop.leave(ours.fileno(), loop.handlers[ours.fileno()], closing=True)
        loop.discard(ours)
        states.append(ours.fileno() >= 0)
        loop.stop()

    with theirs:
        loop.watch(ours.fileno(), IN, handle)
        theirs.send(b"x")
        loop.run()
        assert states == [True]
        assert ours.fileno() == -1


@pytest.mark.parametrize("who", ["a watch", "the engine"])
def test_a_copy_in_a_child_keeps_no_closed_socket_in_the_loop(
    loop: Loop, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child has copies between its fork and its program; their events would go to a new socket of the same number."""
    monkeypatch.setattr(loop_module, "_has_children", False)
    ours, theirs = socket.socketpair()
    new, other = socket.socketpair()
    events: list[int] = []

    def handle(event: int, now: float) -> None:
        events.append(event)

    with ours, theirs, new, other:
        number = ours.fileno()
        watch = Watch(ours, loop, handle)
        watch.set_interest(IN)
        copy = os.dup(number)  # as the child has it
        try:
            if who == "a watch":
                watch.end()
            else:
                expect_child()
                loop.leave(number, loop.handlers[number], closing=True)
            os.dup2(new.fileno(), number)  # closes it, and gives its number to another socket, at once
            theirs.close()
            Watch(ours, loop, handle).set_interest(IN)
            loop.call(loop.stop)
            loop.run()
        finally:
            os.close(copy)
    assert events == []


@pytest.mark.parametrize("who", ["fork", "start"])
def test_the_loops_know_of_the_children_that_relay_makes(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_has_children", False)
    if who == "start":
        start(["true"]).wait(WAIT)
    elif pid := os.fork():
        os.waitpid(pid, 0)
    else:
        os._exit(0)
    assert loop_module._has_children


@pytest.mark.usefixtures("poll_only")
def test_the_loop_runs_without_epoll_and_eventfd() -> None:
    one = Loop()
    seen: list[int] = []
    thread = threading.Thread(target=one.run)
    thread.start()
    one.call(lambda: seen.append(1))
    one.call(one.stop)
    thread.join(WAIT)
    one.close()
    assert seen == [1]


def test_a_loop_knows_its_thread(loop: Loop) -> None:
    assert not loop.is_here()
    found: list[bool] = []
    loop.call(lambda: found.append(loop.is_here()))
    loop.call(loop.stop)
    loop.run()
    assert found == [True]
    other: list[bool] = []
    thread = threading.Thread(target=lambda: other.append(loop.is_here()))
    thread.start()
    thread.join(WAIT)
    assert other == [False]


# -- bulk transfers ---------------------------------------------------------------------------------------------------

needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is no epoll")
MANY = 10


class Ready:
    """Sockets that always have bytes: the first ones are of bulk transfers, and the last one is not."""

    def __init__(self, loop: Loop, count: int = MANY + 1) -> None:
        self.loop = loop
        self.ends = [socket.socketpair() for _ in range(count)]
        self.called: list[int] = []
        for number, (mine, other) in enumerate(self.ends):
            other.send(b"x")
            loop.watch(mine.fileno(), IN, functools.partial(self.handle, number))
            if number < MANY:
                loop.set_bulk(mine.fileno(), IN, True)

    def handle(self, number: int, event: int, now: float) -> None:
        self.called.append(number)

    def turn(self) -> list[int]:
        """Return the numbers of those that are handled in one turn of the loop."""
        self.called.clear()
        self.loop.turn()
        return self.called

    def descriptor(self, number: int) -> int:
        return self.ends[number][0].fileno()

    def close(self) -> None:
        for end in itertools.chain(*self.ends):
            end.close()


@pytest.fixture
def ready(loop: Loop) -> Iterator[Ready]:
    yield from closed(Ready(loop))


@needs_epoll
def test_a_few_bulk_transfers_are_handled_in_a_turn_and_all_of_them_in_turn(ready: Ready) -> None:
    ready.turn()  # of those that it has begun to watch in the turn of their event, none is handled
    turns = [ready.turn().copy() for _ in range(MANY)]
    assert {(len(turn), turn.count(MANY)) for turn in turns} == {(5, 1)}
    assert [sum(turn.count(number) for turn in turns) for number in range(MANY)] == [4] * MANY


@needs_epoll
def test_what_is_no_bulk_transfer_any_more_is_handled_in_each_turn(ready: Ready) -> None:
    for number in range(3):
        ready.loop.set_bulk(ready.descriptor(number), IN, False)
        ready.loop.set_bulk(ready.descriptor(number), IN, False)
    for _ in range(3):
        called = ready.turn()
        assert {0, 1, 2, MANY} <= set(called)
        assert len(called) == 4 + 4


@needs_epoll
def test_an_interest_is_changed_where_the_descriptor_is(ready: Ready) -> None:
    loop = ready.loop
    for number in range(MANY):
        descriptor = ready.descriptor(number)
        loop.poller_of(descriptor).modify(descriptor, 0)
    assert [ready.turn().copy() for _ in range(3)] == [[MANY]] * 3
    loop.set_bulk(ready.descriptor(0), IN, False)
    assert sorted(ready.turn()) == [0, MANY]


@needs_epoll
@pytest.mark.parametrize("how", ["forget", "leave", "close"])
def test_a_bulk_transfer_that_ends_leaves_nothing(ready: Ready, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_has_children", False)
    loop = ready.loop
    number = ready.descriptor(0)
    if how == "forget":
        loop.forget(number)
    elif how == "leave":
        loop.leave(number, loop.handlers[number], closing=True)
    if how == "forget":
        assert number not in loop.ready_bulk()
    if how != "close":
        assert number not in loop.bulk
    new, other = socket.socketpair()
    with new, other:
        os.dup2(new.fileno(), number)  # closes it, and gives its number to another socket
        other.send(b"x")
        loop.watch(number, IN, lambda event, now: ready.called.append(-1))
        assert number not in loop.bulk
        ready.turn()
        assert [ready.turn().count(-1) for _ in range(3)] == [1] * 3, "it is handled with all others"
        loop.forget(number)
        assert number not in dict(loop.poller.poll(0))


@needs_epoll
def test_a_bug_in_the_handler_of_a_bulk_transfer_ends_that_one_only(
    ready: Ready, caplog: pytest.LogCaptureFixture
) -> None:
    loop = ready.loop
    number = ready.descriptor(0)

    def broken(event: int, now: float) -> None:
        raise RuntimeError("a bug")

    loop.handlers[number] = broken
    with caplog.at_level(logging.ERROR, "relay"):
        seen = {one for _ in range(4) for one in ready.turn()}
    assert seen == set(range(1, MANY + 1))
    assert number not in loop.handlers
    assert len(caplog.records) == 1


@needs_epoll
def test_an_event_of_a_closed_bulk_transfer_does_not_meet_a_new_socket(ready: Ready) -> None:
    loop = ready.loop
    seen: list[str] = []
    replaced: list[int] = []
    for number in (0, 1):
        loop.handlers[ready.descriptor(number)] = lambda event, now, number=number: replace_the_other(1 - number)

    def replace_the_other(number: int) -> None:
        descriptor = ready.descriptor(number)
        replaced.append(number)
        loop.forget(descriptor)
        os.dup2(ready.descriptor(MANY), descriptor)
        loop.watch(descriptor, IN, lambda event, now: seen.append("new"))

    while not replaced:  # in the turn that has the events of both
        loop.turn()
    assert seen == []


@pytest.mark.usefixtures("poll_only")
def test_without_epoll_all_are_handled_in_each_turn() -> None:
    one = Loop()
    ready = Ready(one)
    assert sorted(ready.turn() or ready.turn()) == list(range(MANY + 1))
    assert one.bulk == set()
    ready.close()
    one.close()


@needs_epoll
@pytest.mark.parametrize("what", ["no descriptor", "no room for it", "no room in it"])
def test_where_there_is_no_room_all_are_handled_in_each_turn(
    loop: Loop, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[select.epoll] = []

    class Full:
        def __init__(self) -> None:
            if what == "no descriptor":
                raise OSError(errno.EMFILE, "no descriptor")
            self._poller = select.epoll()
            self.poll, self.close = self._poller.poll, self._poller.close
            made.append(self._poller)

        def fileno(self) -> int:
            return 1 << 20 if what == "no room for it" else self._poller.fileno()

        def register(self, descriptor: int, mask: int) -> None:
            raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(loop_module, "make_poller", Full)
    ready = Ready(loop)
    ready.turn()
    assert sorted(ready.turn()) == list(range(MANY + 1))
    assert loop.bulk == set()
    assert [one.closed for one in made] == {"no descriptor": [], "no room in it": [False]}.get(what, [True] * MANY)
    ready.close()


@needs_epoll
def test_a_loop_closes_its_descriptors() -> None:
    before = set(os.listdir("/dev/fd"))
    one = Loop()
    ready = Ready(one)
    ready.close()
    one.close()
    assert set(os.listdir("/dev/fd")) == before
