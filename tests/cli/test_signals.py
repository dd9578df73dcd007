"""``relay.cli.signals``: signals and wakes in one wait."""

from __future__ import annotations

import os
import signal
import threading

from helpers import WAIT

from relay.cli.signals import Signals

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
