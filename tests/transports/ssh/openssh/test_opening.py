"""``relay.transports.ssh.openssh.opening``: each row of the table of states, without any ssh."""

from __future__ import annotations

import contextlib
import socket

import pytest
from state_table import rows_of

from relay.errors import ConnectError
from relay.transports.ssh.openssh import opening as module
from relay.transports.ssh.openssh.opening import Opening, OpeningState

ERROR = ConnectError("server: it is gone")


class Owner:
    """The connection: counts the answers."""

    server = "server"

    def __init__(self):
        self.answers = 0

    def answered(self, opening):
        self.answers += 1

    def over(self, opening):
        raise AssertionError("an opening does not end by itself here")

    def soon(self, call):
        call()

    def unexplained_error(self, opening):
        return ConnectError("server: no explanation")


class Rig:
    """An opening, and what its caller got."""

    def __init__(self, patient):
        self.owner = Owner()
        self.got = []
        self.ours, self.far = socket.socketpair()
        self.far.setblocking(False)
        self.opening = Opening(self.owner, "target", self.got.append, 1.0, patient=patient)

    def connected(self):
        report = self.opening.connected(self.ours)
        if report is not None:
            report(self.opening.stream(self.ours))

    def opened(self):
        self.opening.opened()

    def fails(self):
        self.opening.fail(ERROR)

    def expires(self):
        self.opening.expire()

    def cancel(self):
        self.opening.give_up()

    @property
    def is_cut(self):
        """True if ssh reads an end of file."""
        with contextlib.suppress(BlockingIOError):
            return self.far.recv(1) == b""
        return False


@pytest.fixture
def made():
    rigs = []

    def make(patient):
        rigs.append(Rig(patient))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.ours.close()
        rig.far.close()


def gets_the_stream(rig):
    (stream,) = rig.got
    assert stream.socket is rig.ours
    assert rig.opening.failure() is not None  # nothing explains its end yet


def gets_the_error(rig):
    assert rig.got == [ERROR]


def gets_nothing(rig):
    assert rig.got == []


def failure_has_the_error(rig):
    (stream,) = rig.got
    assert stream.failure() is ERROR
    assert not rig.is_cut


def failure_tells_of_the_deadline(rig):
    (stream,) = rig.got
    assert "target" in str(stream.failure())
    assert rig.is_cut


def closes_it(rig):
    assert rig.is_cut


NO, YES = False, True
WAY = {
    "ASKED": (NO, []),
    "ANSWERED": (NO, [Rig.opened]),
    "CONNECTED": (YES, [Rig.connected]),
    "REPORTED": (NO, [Rig.connected]),
    "WAITING": (YES, [Rig.connected]),
    "OPEN": (NO, [Rig.connected, Rig.opened]),
    "OVER": (NO, [Rig.fails]),
}
ROWS = [
    ("ASKED", "socket, patient", "CONNECTED", Rig.connected, gets_nothing),
    ("ASKED", "socket, not patient", "REPORTED", Rig.connected, gets_the_stream),
    ("ASKED", "opened", "ANSWERED", Rig.opened, gets_nothing),
    ("ANSWERED", "socket", "OPEN", Rig.connected, gets_the_stream),
    ("CONNECTED", "opened", "OPEN", Rig.opened, gets_the_stream),
    ("REPORTED", "opened", "OPEN", Rig.opened, gets_the_stream),
    ("WAITING", "error", "OVER", Rig.fails, gets_the_error),
    ("WAITING", "cancel", "OVER", Rig.cancel, gets_nothing),
    ("REPORTED", "error", "OVER", Rig.fails, failure_has_the_error),
    ("REPORTED", "deadline", "OVER", Rig.expires, failure_tells_of_the_deadline),
    ("REPORTED", "cancel", "REPORTED", Rig.cancel, gets_the_stream),
    ("OPEN", "error", "OVER", Rig.fails, failure_has_the_error),
    ("OVER", "socket", "OVER", Rig.connected, closes_it),
    ("OVER", "opened", "OVER", Rig.opened, gets_the_error),
]


def test_the_table_has_the_same_rows():
    assert rows_of(module) == [row[:3] for row in ROWS]


@pytest.mark.parametrize(("state", "event", "next_state", "act", "then"), ROWS)
def test_each_row(made, state, event, next_state, act, then):
    patient, way = WAY[state]
    rig = made(patient or event == "socket, patient")
    for step in way:
        step(rig)
    before = rig.owner.answers
    act(rig)
    assert rig.opening._state is OpeningState[next_state]
    assert (rig.owner.answers > before) is (act is not Rig.connected)
    then(rig)


@pytest.mark.parametrize("patient", [False, True])
@pytest.mark.parametrize("act", [Rig.fails, Rig.cancel])
@pytest.mark.parametrize("way", [[], [Rig.opened], [Rig.connected]], ids=["asked", "answered", "connected"])
def test_an_error_or_a_cancel_in_each_state_of_waiting(made, way, act, patient):
    rig = made(patient)
    for step in way:
        step(rig)
    waits = rig.opening.done is not None
    act(rig)
    if waits:
        assert rig.opening._state is OpeningState.OVER
        assert rig.got == ([ERROR] if act is Rig.fails else [])
        assert rig.is_cut is (way == [Rig.connected])


def test_a_stream_that_the_server_has_opened_is_open():
    owner = Owner()
    opening = Opening(owner, "target")
    assert opening._state is OpeningState.OPEN
    opening.opened()
    opening.ended()
    assert opening.failure() is None
