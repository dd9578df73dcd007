"""Dialing that begins anew after a change of the network."""

import errno
import socket
import threading

import pytest
from helpers import WAIT, ending, wait_until

from relay.carriers import redial
from relay.streams.stream import Stream


class Dialer:
    """One whose streams the test makes."""

    def __init__(self):
        self.asked = []  # the callback of each stream
        self.given_up = []  # the numbers of those
        self.error = None

    def dial(self, deadline, done, *, wait_for_reconnect):
        if self.error is not None:
            raise self.error
        number = len(self.asked)
        self.asked.append(done)
        return lambda: self.given_up.append(number)


@pytest.fixture
def dialer():
    return Dialer()


@pytest.fixture
def change(monkeypatch):
    """Tell those that follow the network of a change; they are in the list that it has."""
    monkeypatch.setattr(redial, "_PATIENCE", (0.05, 1000.0))
    followers = []
    monkeypatch.setattr(redial.network, "subscribe", lambda home, call: followers.append((home, call)))
    monkeypatch.setattr(redial.network, "unsubscribe", lambda home, call: followers.remove((home, call)))

    def tell():
        [(home, call)] = followers
        home.loop.call(lambda: call("a new address"))

    tell.followers = followers
    return tell


@pytest.fixture
def begun(dialer, change):
    """A stream that is being made: its outcomes, what tells that there is one, and what gives it up."""
    outcomes, there = [], threading.Event()
    give_up = redial.dial(dialer, None, lambda outcome: (outcomes.append(outcome), there.set()))
    wait_until(lambda: dialer.asked)
    yield outcomes, there, give_up
    give_up()
    wait_until(lambda: not change.followers)


@pytest.fixture
def pair():
    near, far = socket.socketpair()
    near.setblocking(False)
    far.settimeout(WAIT)
    stream = Stream(near)
    yield stream, far
    stream.close()
    far.close()


def test_what_is_not_there_soon_begins_anew(dialer, change, begun, pair):
    outcomes, there, _ = begun
    for number in (1, 2):
        change()
        wait_until(lambda count=number: len(dialer.asked) == count + 1)
    assert dialer.given_up == [0, 1]
    dialer.asked[2](pair[0])
    assert there.wait(WAIT)
    assert outcomes == [pair[0]]
    wait_until(lambda: not change.followers)


def test_what_is_there_in_time_is_used(dialer, change, begun, pair):
    change()
    dialer.asked[0](pair[0])
    outcomes, there, _ = begun
    assert there.wait(WAIT)
    assert outcomes == [pair[0]]
    wait_until(lambda: not change.followers)
    assert len(dialer.asked) == 1


def test_a_stream_that_was_given_up_for_another_is_closed(dialer, change, begun, pair):
    change()
    wait_until(lambda: len(dialer.asked) == 2)
    dialer.asked[0](pair[0])
    assert ending(pair[1])
    assert begun[0] == []


def test_an_error_is_an_outcome(dialer, change, begun):
    outcomes, there, _ = begun
    error = OSError(errno.ECONNREFUSED, "refused")
    dialer.asked[0](error)
    assert there.wait(WAIT)
    assert outcomes == [error]


def test_so_is_one_that_is_raised(dialer, change):
    dialer.error = OSError(errno.EMFILE, "no descriptor is left")
    outcomes, there = [], threading.Event()
    redial.dial(dialer, None, lambda outcome: (outcomes.append(outcome), there.set()))
    assert there.wait(WAIT)
    assert outcomes == [dialer.error]


def test_what_is_given_up_has_no_outcome(dialer, change, begun, pair):
    outcomes, _, give_up = begun
    give_up()
    wait_until(lambda: dialer.given_up == [0])
    wait_until(lambda: not change.followers)
    dialer.asked[0](pair[0])
    assert ending(pair[1])
    assert outcomes == []
