"""Calls of other threads in the main thread."""

from __future__ import annotations

import threading

import pytest
from helpers import Thread, wait_until

from relay.daemon.failures import ConflictError
from relay.daemon.signals import MainThread


def run_one(main_thread, woken):
    """Do what the main thread does after a wake."""
    woken.wait()
    woken.clear()
    assert main_thread.run_next()


@pytest.fixture
def woken():
    return threading.Event()


@pytest.fixture
def main_thread(woken):
    return MainThread(woken.set)


def test_another_thread_gets_the_result(main_thread, woken):
    caller = Thread(main_thread.call, lambda: threading.current_thread())
    run_one(main_thread, woken)
    assert caller.result() is threading.current_thread()
    assert not main_thread.run_next()


def test_another_thread_gets_the_error(main_thread, woken):
    caller = Thread(main_thread.call, int, "x")
    run_one(main_thread, woken)
    with pytest.raises(ValueError, match="invalid literal"):
        caller.result()


def test_the_main_thread_itself_does_not_wait(main_thread, woken):
    assert main_thread.call(int, "7") == 7
    assert not woken.is_set()


def test_what_comes_later_keeps_its_order(main_thread):
    done = []
    for number in range(3):
        main_thread.later(done.append, number)
    while main_thread.run_next():
        pass
    assert done == [0, 1, 2]


def test_the_end_is_an_error_for_those_that_wait_and_those_that_come(main_thread):
    caller = Thread(main_thread.call, int)
    wait_until(lambda: main_thread.has_callers)
    main_thread.close()
    assert main_thread.is_over
    with pytest.raises(ConflictError, match="relay is ending"):
        caller.result()
    assert main_thread.run_next(), "its call is still there, and does nothing"
    late = Thread(main_thread.call, int)
    with pytest.raises(ConflictError, match="relay is ending"):
        late.result()


def test_the_thread_that_enters_is_the_main_thread(main_thread):
    def enter_and_call():
        main_thread.enter()
        return main_thread.call(int, "8")

    assert Thread(enter_and_call).result() == 8
