"""Threads for what may block: as few as the work needs, and no job waits for one that is blocked."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from helpers import WAIT, wait_until

from relay.eventloop import workers
from relay.eventloop.loop import Loop
from relay.eventloop.workers import Workers


def alive() -> list[str]:
    """Return the names of the threads that work, or wait for work."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("test worker")]


@pytest.fixture
def loop() -> Iterator[Loop]:
    one = Loop()
    thread = threading.Thread(target=one.run)
    thread.start()
    yield one
    one.call(one.stop)
    thread.join(WAIT)
    one.close()


@pytest.fixture
def pool(loop: Loop) -> Iterator[Workers]:
    one = Workers(loop, "test worker")
    yield one
    loop.call(one.close)
    wait_until(lambda: not alive())
    one.join(WAIT)


def test_a_thread_that_is_done_is_used_again(loop: Loop, pool: Workers) -> None:
    used: set[threading.Thread] = set()
    for _ in range(20):
        done = threading.Event()
        loop.call(lambda done=done: pool.submit(lambda: (used.add(threading.current_thread()), done.set())))  # type: ignore[misc]
        assert done.wait(WAIT)
    assert 1 <= len(used) < 20
    assert all(thread.daemon for thread in used)


def test_work_behind_blocked_work_gets_threads_of_its_own(loop: Loop, pool: Workers) -> None:
    go, inside = threading.Event(), threading.Semaphore(0)

    def block() -> None:
        inside.release()
        go.wait(WAIT)

    for _ in range(30):
        loop.call(lambda: pool.submit(block))
    for _ in range(30):
        assert inside.acquire(timeout=WAIT), "one piece of work waits for another"
    go.set()


def test_short_work_in_a_burst_needs_few_threads(loop: Loop, pool: Workers) -> None:
    seen: list[threading.Thread] = []

    def burst() -> None:
        for _ in range(500):
            pool.submit(lambda: seen.append(threading.current_thread()))

    loop.call(burst)
    wait_until(lambda: len(seen) == 500)
    assert len(set(seen)) < 100


def test_a_thread_without_work_ends(loop: Loop, pool: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_IDLE", 0.02)
    for _ in range(3):
        done = threading.Event()
        loop.call(lambda done=done: pool.submit(done.set))  # type: ignore[misc]
        assert done.wait(WAIT)
        wait_until(lambda: not alive())


def test_what_was_submitted_before_the_close_is_done(loop: Loop, pool: Workers) -> None:
    seen: list[int] = []

    def submit_and_close() -> None:
        for number in range(50):
            pool.submit(lambda number=number: seen.append(number))  # type: ignore[misc]
        pool.close()

    loop.call(submit_and_close)
    wait_until(lambda: len(seen) == 50)
    wait_until(lambda: not alive())


def test_work_waits_for_a_system_that_is_out_of_threads(
    loop: Loop, pool: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_AGAIN", 0.01)
    done, refused = threading.Event(), threading.Event()
    start = threading.Thread.start

    def refuse_once(self: threading.Thread) -> None:
        if not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse_once)
    loop.call(lambda: pool.submit(done.set))
    assert done.wait(WAIT)
    assert refused.is_set()
