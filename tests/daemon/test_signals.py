"""``relay.daemon.signals``: signals and wakes in one wait."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import threading

from helpers import WAIT

from relay.daemon.signals import Signals

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
