"""Records on their way to a callable that may block, raise, or be too slow."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
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


def test_without_a_record_there_is_no_thread() -> None:
    before = threading.active_count()
    observer = Observer(lambda it: None, "web")
    observer.close()
    assert threading.active_count() == before


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


def test_the_end_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(observer_module, "_PATIENCE", 0.01)
    slow = Slow()
    observer = Observer(slow, "web")
    for number in range(3):
        observer.put(record(number))
    assert slow.began.wait(WAIT)
    observer.close()
    (line,) = caplog.records
    assert "still running after 0.01 s, 2 records are waiting" in line.getMessage()
    slow.go.set()
    assert observer._thread is not None
    observer._thread.join(WAIT)
    assert slow.seen == [0, 1, 2]  # late, but not lost


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


def _no_thread(thread: threading.Thread) -> None:
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5, "on_end: expected a callable, got int"),
        (_coroutine_function, "on_end: a coroutine function cannot be called from a thread"),
        (_Asynchronous(), "on_end: a coroutine function cannot be called from a thread"),
    ],
)
def test_what_cannot_be_called_is_named(given: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        check_callback(given)


@pytest.mark.parametrize("given", [None, print, Slow()])
def test_what_can_be_called_is_taken(given: Callable[..., Any] | None) -> None:
    check_callback(given)
