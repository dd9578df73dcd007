"""Records on their way to a callable that may block, raise, or be too slow."""

import logging
import threading
from types import SimpleNamespace

import pytest
from helpers import WAIT, Thread

from relay.engine import observer as observer_module
from relay.engine.observer import Observer, check_callback
from relay.engine.records import ConnectionRecord


def record(number):
    return ConnectionRecord(("127.0.0.1", number), "db:5432", 1.0, 0, 0, "copy", "closed", "done")


class Seen:
    """A callable that notes the records, and what it finds out about its thread."""

    def __init__(self, look=lambda: None):
        self.numbers, self.look, self.found = [], look, []

    def __call__(self, record):
        self.numbers.append(record.peer[1])
        self.found.append(self.look())


@pytest.fixture
def no_threads(monkeypatch):
    """A system without threads, until it is undone, and how often one was asked for."""
    system = SimpleNamespace(asked=0, undo=monkeypatch.undo)

    def fail(*arguments):
        system.asked += 1
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    return system


def has_thread():
    return "web on_end" in [thread.name for thread in threading.enumerate()]


def test_records_come_in_order_on_one_thread_that_ends_with_the_observer():
    seen = Seen(lambda: (threading.current_thread().name, threading.current_thread().daemon))
    observer = Observer(seen, "web")
    assert not has_thread()
    for number in range(100):
        observer.put(record(number))
    observer.close()
    assert seen.numbers == list(range(100))
    assert set(seen.found) == {("web on_end", True)}, "it does not hold up the end of the program"
    assert not has_thread()


def test_it_knows_its_own_thread():
    seen = Seen(lambda: observer.is_on_its_thread())
    observer = Observer(seen, "web")
    assert not observer.is_on_its_thread()
    observer.put(record(1))
    observer.close()
    assert seen.found == [True]
    assert not Thread(observer.is_on_its_thread).result()


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)])
def test_what_the_callable_raises_is_logged_and_the_next_record_comes(error, caplog):
    def fail_first():
        if len(seen.numbers) == 1:
            raise error

    seen = Seen(fail_first)
    observer = Observer(seen, "web")
    observer.put(record(1))
    observer.put(record(2))
    observer.close()
    assert seen.numbers == [1, 2]
    (line,) = caplog.records
    assert line.getMessage() == "web: on_end failed"
    assert line.exc_info[1] is error


@pytest.mark.parametrize(("before", "after", "seen_numbers"), [(0, 0, []), (1, 1, [0, 1]), (1, 0, [0]), (0, 1, [0])])
def test_where_there_is_no_thread_the_next_record_and_the_end_try_again(
    no_threads, caplog, before, after, seen_numbers
):
    seen = Seen()
    observer = Observer(seen, "web")
    for number in range(before):
        observer.put(record(number))
    if before or after:
        no_threads.undo()
    for number in range(before, before + after):
        observer.put(record(number))
    observer.close()
    assert (seen.numbers, caplog.messages, no_threads.asked) == (seen_numbers, [], before)


def test_records_for_which_there_is_no_thread_at_the_end_are_counted(no_threads, caplog):
    seen = Seen()
    observer = Observer(seen, "web")
    observer.put(record(3))
    observer.close()
    assert seen.numbers == []
    assert [line.levelno for line in caplog.records] == [logging.ERROR]
    assert caplog.messages == ["web: on_end: no thread available, 1 records were dropped"]


# -- a callable that is too slow --------------------------------------------------------------------------------------


class Stepwise(Seen):
    """A callable that ends each call only when the test lets it, and has begun the next one then."""

    def __init__(self):
        super().__init__(self.step_on)
        self.began, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def step_on(self):
        self.began.release()
        assert self.go.acquire(timeout=WAIT)

    def has_begun(self):
        return self.began.acquire(timeout=WAIT)

    def step(self, count):
        for _ in range(count):
            self.go.release()
            assert self.has_begun()

    def end(self):
        self.go.release(20_000)


LIMIT = 10_000
FULL = f"web: on_end: too slow, {LIMIT} records are waiting; dropping records"


def test_once_too_many_wait_records_are_dropped_until_fewer_than_half_of_them_do(caplog):
    stepwise = Stepwise()
    observer = Observer(stepwise, "web")

    def put(first, last):
        for number in range(first, last + 1):
            observer.put(record(number))

    try:
        put(0, 0)
        assert stepwise.has_begun()
        put(1, LIMIT + 20)  # so many wait, and twenty are dropped
        stepwise.step(LIMIT // 2)
        put(-1, -1)  # dropped, because half of them wait
        stepwise.step(1)
        put(LIMIT + 21, LIMIT + LIMIT // 2 + 22)  # the last one is dropped
    finally:
        stepwise.end()
        observer.close()
    assert stepwise.numbers == [*range(LIMIT + 1), *range(LIMIT + 21, LIMIT + LIMIT // 2 + 22)]
    dropped = "web: on_end: {} records were dropped"
    assert caplog.messages == [FULL, dropped.format(21), FULL, dropped.format(1)]


@pytest.mark.parametrize("count", [1, 3])
def test_the_end_does_not_wait_for_ever(monkeypatch, caplog, count):
    monkeypatch.setattr(observer_module, "_PATIENCE", 0.01)
    stepwise = Stepwise()
    observer = Observer(stepwise, "web")
    for number in range(count):
        observer.put(record(number))
    assert stepwise.has_begun()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "web on_end"]
    Thread(observer.close).result()
    stepwise.end()
    text = "web: on_end: still running after 0.01 s, {} records are waiting; not waiting for it any longer"
    assert caplog.messages == [text.format(count - 1)]
    thread.join(WAIT)
    assert stepwise.numbers == list(range(count)), "late, but not lost"


# -- what can be called -----------------------------------------------------------------------------------------------


async def coroutine_function(it): ...


class Asynchronous:
    async def __call__(self, it): ...


async def asynchronous_generator(it):
    yield


@pytest.mark.parametrize(
    ("given", "said"),
    [(5, "on_end: expected a callable, got int")]
    + [
        (given, "on_end: a coroutine function cannot be called from a thread")
        for given in (coroutine_function, asynchronous_generator, Asynchronous())
    ],
)
def test_what_cannot_be_called_is_named(given, said):
    with pytest.raises(TypeError, match=said):
        check_callback(given)


@pytest.mark.parametrize("given", [None, print, Seen()])
def test_what_can_be_called_is_taken(given):
    check_callback(given)
