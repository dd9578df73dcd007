"""``relay.daemon.signals``: signals and wakes in one wait, and calls of other threads in the main thread."""

import contextlib
import fcntl
import os
import resource
import signal
import socket
import threading

import pytest
from helpers import WAIT, Thread, wait_until

from relay.daemon.failures import ConflictError
from relay.daemon.signals import MainThread, Signals

MANY = 2000  # wakes, each of which once took a place in a buffer of some hundred


def test_a_signal_after_many_wakes_is_not_lost():
    """As when hundreds of tunnels have opened at once."""
    with Signals() as signals:
        for _ in range(MANY):
            signals.wake()
        os.kill(os.getpid(), signal.SIGTERM)
        assert [signals.wait(WAIT), signals.wait(WAIT)] == [0, signal.SIGTERM]
        assert signals.wait(0) is None


def test_each_wake_after_a_wait_ends_the_next_one():
    with Signals() as signals:
        for _ in range(3):
            waker = threading.Thread(target=signals.wake)
            waker.start()
            assert signals.wait(WAIT) == 0
            waker.join(WAIT)
        assert signals.wait(0) is None


def test_a_descriptor_beyond_those_of_select_is_watched():
    """A reload opens its sockets while thousands of connections may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    reader, writer = socket.socketpair()
    high = None
    try:
        high = fcntl.fcntl(reader.fileno(), fcntl.F_DUPFD_CLOEXEC, 2000)
        called = []
        with Signals() as signals:
            signals.watch(high, lambda: called.append(reader.recv(1)))
            assert signals.wait(0) is None
            writer.send(b"x")
            assert (signals.wait(WAIT), called) == (0, [b"x"])
    finally:
        if high is not None:
            os.close(high)
        reader.close()
        writer.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_wake_that_a_full_buffer_did_not_take_is_followed_by_others():
    with Signals() as signals:
        count = 0
        with contextlib.suppress(BlockingIOError):
            while signals._writer.send(bytes([signal.SIGTERM])):  # as that many signals do
                count += 1
        signals.wake()
        for _ in range(count):
            assert signals.wait(WAIT) == signal.SIGTERM
        signals.wake()
        assert signals.wait(WAIT) == 0


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
