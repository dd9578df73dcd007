"""``relay.streams.exit_drain``: what the exit of the interpreter waits for, and for how long."""

import gc
import itertools
import math
import os
import subprocess
import sys
import threading

import pytest
from helpers import WAIT

from relay.streams import exit_drain


class Sender:
    """A sender that the test scripts.

    :param sent: whether everything has left already; ``None`` for a sender that has ended.
    """

    def __init__(self, quiet=WAIT, sent=True, moves=(), then=None):
        self.quiet = quiet
        self.sent = sent
        self.moves = iter(moves)
        self.then = then
        self.done = None

    def when_sent(self, done):
        self.done = done
        if self.sent:
            done()
        return self.sent is not None

    def progress(self):
        if self.then is not None:
            self.then(self)
        return next(self.moves, 0)

    def __repr__(self):
        return "the sender"


@pytest.fixture(autouse=True)
def none_of_others(monkeypatch):
    monkeypatch.setattr(exit_drain, "_senders", tuple(type(level)() for level in exit_drain._senders))
    monkeypatch.setattr(exit_drain, "_until", math.inf)  # groups in this process have set others


def test_senders_that_have_sent_and_those_that_have_ended_are_not_waited_for(caplog):
    senders = [Sender(), Sender(sent=None)]
    for sender in senders:
        exit_drain.track(sender)
    exit_drain.drain()
    assert not caplog.records


def test_it_waits_until_everything_has_left(caplog):
    sender = Sender(sent=False)
    exit_drain.track(sender)
    drained = threading.Event()
    waiting = threading.Thread(target=lambda: exit_drain.drain() or drained.set())
    waiting.start()
    assert not drained.wait(0.1)
    sender.done()
    assert drained.wait(WAIT)
    waiting.join()
    assert not caplog.records


def test_progress_puts_the_limit_off(caplog):
    counts = itertools.count()
    sender = Sender(quiet=0.01, sent=False, moves=counts, then=lambda one: next(looks) == 5 and one.done())
    looks = itertools.count()
    exit_drain.track(sender)
    exit_drain.drain()
    assert next(counts) >= 5
    assert not caplog.records


def test_without_progress_it_gives_up_and_says_so(caplog):
    sender = Sender(quiet=0.01, sent=False)
    exit_drain.track(sender)
    exit_drain.drain()
    assert [record.getMessage() for record in caplog.records] == [
        "exit: the sender has taken nothing for 0.01 s, and what it has not taken may be lost; check the target"
    ]


@pytest.mark.parametrize("quiet", [None, WAIT])
def test_it_gives_up_at_the_limit_for_all_senders_and_says_so(quiet, caplog):
    senders = [Sender(quiet=quiet, sent=False) for _ in range(2)]
    for sender in senders:
        exit_drain.track(sender)
    exit_drain.limit(0.01)
    exit_drain.drain()
    assert [record.getMessage() for record in caplog.records] == [
        "exit: the sender has not taken everything in time, and the rest may be lost; check the target"
    ] * 2


def test_an_interrupt_ends_the_wait():
    def interrupt(_):
        raise KeyboardInterrupt

    exit_drain.track(Sender(quiet=None, sent=False, then=interrupt))
    exit_drain.drain()
    sender = Sender(then=interrupt)
    exit_drain.track(sender)
    exit_drain.drain()
    assert sender.done is None


def test_the_upper_ones_are_first():
    order = []
    names = {exit_drain.CARRIERS: "lower", exit_drain.SESSIONS: "upper", exit_drain.OVER_CARRIERS: "middle"}
    senders = [Sender(then=lambda one, name=name: order.append(name)) for name in names.values()]
    for level, sender in zip(names, senders, strict=True):
        exit_drain.track(sender, level=level)
    exit_drain.drain()
    assert order == ["upper", "middle", "lower"]


def test_a_sender_that_is_gone_is_forgotten():
    exit_drain.track(Sender(quiet=None, sent=False))
    gc.collect()
    exit_drain.drain()


def test_others_may_come_meanwhile():
    kept, is_over, interval = [Sender() for _ in range(300)], threading.Event(), sys.getswitchinterval()
    for sender in kept:
        exit_drain.track(sender)

    def add():
        while not is_over.is_set():
            exit_drain.track(Sender())

    adding = threading.Thread(target=add)
    sys.setswitchinterval(1e-6)
    adding.start()
    try:
        for _ in range(100):
            exit_drain.drain()
    finally:
        is_over.set()
        adding.join()
        sys.setswitchinterval(interval)


def test_a_forked_child_waits_for_nothing():
    sender = Sender(quiet=None, sent=False)
    exit_drain.track(sender)
    exit_drain.limit(WAIT)
    pid = os.fork()
    if not pid:
        exit_drain.drain()
        os._exit(exit_drain._until != math.inf)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert sender.done is None


ORDER = """
import atexit
from relay.streams import exit_drain
atexit.register(print, "a library")
exit_drain.run_before_others()

class Sender:
    quiet = None
    def progress(self): return 0
    def when_sent(self, done): print("the wait"); done(); return True

sender = Sender()
exit_drain.track(sender)
"""


def test_it_runs_before_the_handlers_that_are_there():
    said = subprocess.run([sys.executable, "-c", ORDER], stdout=subprocess.PIPE, timeout=WAIT, text=True).stdout
    assert said.splitlines() == ["the wait", "a library"]
