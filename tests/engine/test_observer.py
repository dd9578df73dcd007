"""Records on their way to a callable that may block, raise, or be too slow."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from helpers import WAIT, Thread

from relay.engine import observer as observer_module
from relay.engine.observer import Observer, check_callback
from relay.engine.records import ConnectionRecord


def record(number: int) -> ConnectionRecord:
    return ConnectionRecord(("127.0.0.1", number), "db:5432", 1.0, 0, 0, "copy", "closed", "done")


def test_records_come_in_order_on_one_thread_that_ends_with_the_observer() -> None:
    seen: list[tuple[int, str]] = []
    observer = Observer(lambda it: seen.append((it.peer[1], threading.current_thread().name)), "web")
    assert "web on_end" not in [thread.name for thread in threading.enumerate()]
    for number in range(100):
        observer.put(record(number))
    observer.close()
    assert seen == [(number, "web on_end") for number in range(100)]
    assert "web on_end" not in [thread.name for thread in threading.enumerate()]


def test_without_a_record_there_is_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    observer = Observer(lambda it: None, "web")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", started.append)
        patched.setattr(threading.Thread, "join", _no_thread)
        observer.close()
    assert started == []


def test_its_thread_does_not_hold_up_the_end_of_the_program() -> None:
    seen: list[bool] = []
    observer = Observer(lambda it: seen.append(threading.current_thread().daemon), "web")
    observer.put(record(1))
    observer.close()
    assert seen == [True]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)])
def test_what_the_callable_raises_is_logged_and_the_next_record_comes(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    def fail_first(it: ConnectionRecord) -> None:
        seen.append(it.peer[1])
        if len(seen) == 1:
            raise error

    observer = Observer(fail_first, "web")
    observer.put(record(1))
    observer.put(record(2))
    observer.close()
    assert seen == [1, 2]
    (line,) = caplog.records
    assert line.getMessage() == "web: on_end failed"
    assert line.exc_info and line.exc_info[1] is error


class Slow:
    """A callable that waits for ``go``."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.began = threading.Event()
        self.go = threading.Event()

    def __call__(self, it: ConnectionRecord) -> None:
        self.began.set()
        assert self.go.wait(WAIT)
        self.seen.append(it.peer[1])


def test_beyond_the_limit_records_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(observer_module, "_LIMIT", 10)
    slow = Slow()
    observer = Observer(slow, "web")
    observer.put(record(0))
    assert slow.began.wait(WAIT)  # so that none of the next ten has been taken
    for number in range(1, 31):
        observer.put(record(number))
    slow.go.set()
    observer.close()
    assert slow.seen == list(range(11))
    assert [line.getMessage() for line in caplog.records] == [
        "web: on_end: too slow, 10 records are waiting; dropping records",
        "web: on_end: 20 records were dropped",
    ]


class Stepwise:
    """A callable that ends each call only when the test lets it, and has begun the next one then."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self._began, self._go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, it: ConnectionRecord) -> None:
        self.seen.append(it.peer[1])
        self._began.release()
        assert self._go.acquire(timeout=WAIT)

    def has_begun(self) -> bool:
        return self._began.acquire(timeout=WAIT)

    def step(self, count: int) -> None:
        for _ in range(count):
            self._go.release()
            assert self.has_begun()

    def end(self) -> None:
        self._go.release(1000)


def test_once_there_were_too_many_records_are_dropped_until_fewer_than_half_of_them_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(observer_module, "_LIMIT", 11)
    stepwise = Stepwise()
    observer = Observer(stepwise, "web")
    try:
        observer.put(record(0))
        assert stepwise.has_begun()
        for number in range(1, 13):  # 11 wait, and the last one is dropped
            observer.put(record(number))
        stepwise.step(6)
        observer.put(record(13))  # 5 wait
        stepwise.step(1)
        for number in range(14, 22):  # 4 wait, and then 11, and the last one is dropped
            observer.put(record(number))
    finally:
        stepwise.end()
        observer.close()
    assert stepwise.seen == [*range(12), *range(14, 21)]
    assert [line.getMessage() for line in caplog.records] == [
        "web: on_end: too slow, 11 records are waiting; dropping records",
        "web: on_end: 2 records were dropped",
        "web: on_end: too slow, 11 records are waiting; dropping records",
        "web: on_end: 1 records were dropped",
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_the_end_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    monkeypatch.setattr(observer_module, "_PATIENCE", 0.01)
    slow = Slow()
    observer = Observer(slow, "web")
    join = threading.Thread.join

    def join_in_time(thread: threading.Thread, timeout: float | None = None) -> None:
        assert timeout == 0.01
        join(thread, timeout)

    try:
        for number in range(count):
            observer.put(record(number))
        assert slow.began.wait(WAIT)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "join", join_in_time)
            observer.close()
    finally:
        slow.go.set()
    (line,) = caplog.records
    text = "web: on_end: still running after 0.01 s, {} records are waiting; not waiting for it any longer"
    assert line.getMessage() == text.format(count - 1)
    assert observer._thread is not None
    observer._thread.join(WAIT)
    assert slow.seen == list(range(count))  # late, but not lost


def test_a_system_without_threads_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    observer = Observer(lambda it: seen.append(it.peer[1]), "web")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", _no_thread)
        observer.put(record(1))
    observer.put(record(2))
    observer.close()
    assert seen == [1, 2]
    unlucky = Observer(lambda it: seen.append(it.peer[1]), "web")
    monkeypatch.setattr(threading.Thread, "start", _no_thread)
    unlucky.put(record(3))
    unlucky.close()
    assert seen == [1, 2]
    assert [line.levelno for line in caplog.records] == [logging.ERROR]
    assert caplog.messages == ["web: on_end: no thread available, 1 records were dropped"]


def test_a_record_for_which_there_was_no_thread_is_passed_on_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    observer = Observer(lambda it: seen.append(it.peer[1]), "web")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", _no_thread)
        observer.put(record(1))
    observer.close()
    assert seen == [1]


def _no_thread(thread: threading.Thread, *arguments: Any) -> None:
    raise RuntimeError("can't start new thread")


def test_it_knows_its_own_thread() -> None:
    answers: list[bool] = []
    observer = Observer(lambda it: answers.append(observer.is_on_its_thread()), "web")
    assert not observer.is_on_its_thread()
    observer.put(record(1))
    observer.close()
    assert answers == [True]
    assert not Thread(observer.is_on_its_thread).result()


async def _coroutine_function(it: ConnectionRecord) -> None: ...


class _Asynchronous:
    async def __call__(self, it: ConnectionRecord) -> None: ...


async def _asynchronous_generator(it: ConnectionRecord) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5, "on_end: expected a callable, got int"),
        (_coroutine_function, "on_end: a coroutine function cannot be called from a thread"),
        (_asynchronous_generator, "on_end: a coroutine function cannot be called from a thread"),
        (_Asynchronous(), "on_end: a coroutine function cannot be called from a thread"),
    ],
)
def test_what_cannot_be_called_is_named(given: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        check_callback(given)


@pytest.mark.parametrize("given", [None, print, Slow()])
def test_what_can_be_called_is_taken(given: Callable[..., Any] | None) -> None:
    check_callback(given)
