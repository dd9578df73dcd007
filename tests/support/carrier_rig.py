"""Links and connectors of carriers that do what the test says."""

import queue
import threading
import time

from helpers import WAIT

from relay.errors import CarrierError, ConnectError

REFUSED = ConnectError("c: connection refused", reason="refused")


class Link:
    """A link; ``streams`` of it end when the test says so."""

    router = ""
    is_doubtful = False

    def __init__(self, lost):
        self.error = CarrierError("c: the line went dead")
        self.lose = lambda: lost(self.error)
        self.checked = threading.Event()
        self.closed = threading.Event()
        self.probes = []
        self.abandoned = False
        self.answers = True
        self.streams = 0
        self.rtt = 0.25
        self.idle_call = None

    def when_idle(self, call):
        self.idle_call = call
        if not self.streams:
            call()

    def end_streams(self):
        self.streams = 0
        if self.idle_call is not None:
            self.idle_call()

    def confirm(self, done):
        if self.answers:
            done()

    def check(self):
        self.checked.set()

    def probe(self, why):
        self.probes.append(why)

    def close(self):
        self.closed.set()

    def abandon(self):
        self.abandoned = True


class Connector:
    """Makes links.

    An attempt ends with the next outcome: an exception, or what a function of the cancellation returns; ``None`` is a
    link, as is everything after the last one. While there are ``errors``, it fails with the first; the last one lasts.
    """

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.errors = []
        self.links = []
        self.attempts = 0
        self.asked = []
        self.alternatives = []
        self.closed = threading.Event()
        self.answers = True

    def connect(self, deadline, cancel, lost):
        self.attempts += 1
        if self.errors:
            raise self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if callable(outcome):
            outcome = outcome(cancel)
        if isinstance(outcome, Exception):
            raise outcome
        self.links.append(Link(lost))
        self.links[-1].answers = self.answers
        return self.links[-1]

    def alternative(self, error):
        self.asked.append(error)
        return self.alternatives.pop() if self.alternatives else ""

    def close(self):
        self.closed.set()


def outcome_of(carrier, timeout=WAIT, **options):
    """Return the outcome that a waiter gets."""
    told = queue.SimpleQueue()
    carrier.when_up(told.put, time.monotonic() + timeout, **options)
    return told.get(timeout=WAIT)


def turned(carrier):
    """Wait until the I/O thread has done all that was begun before."""
    looked = threading.Event()
    assert carrier.call(looked.set)
    assert looked.wait(WAIT)
