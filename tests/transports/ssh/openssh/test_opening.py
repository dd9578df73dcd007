"""``relay.transports.ssh.openssh.opening``: each row of the table of states, without any ssh."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import makes
from state_table import rows_of

from relay.errors import ConnectError
from relay.transports.ssh.openssh import opening as module
from relay.transports.ssh.openssh.opening import Opening, OpeningState, OpenStreams

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
    yield from makes(Rig, lambda rig: (rig.ours.close(), rig.far.close()))


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


# Which streams are open, and who waits for their ends.


class Streams:
    """Streams of one ssh, and what was called."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.open = OpenStreams(lambda call: call())
        self.sockets: list[socket.socket] = []

    def stream(self, *, alone: bool = False, has_owner: bool = True) -> tuple[Opening, socket.socket, socket.socket]:
        """An open stream: with its socket, and ssh's end."""
        owner: Any = SimpleNamespace(server="ssh://server")
        opening = Opening(owner, "there:1", alone=alone)
        ours, theirs = socket.socketpair()
        self.sockets += [ours, theirs]
        if has_owner:
            opening.stream(ours)
        self.open.add(opening)
        return opening, ours, theirs

    def wait(self) -> None:
        """Wait as the exit does."""
        self.open.when_sent(lambda: self.called.append("sent"))


@pytest.fixture
def streams() -> Iterator[Streams]:
    made = Streams()
    yield made
    for one in made.sockets:
        one.close()


def test_the_end_of_ssh_is_idle_and_sends_no_more(streams: Streams) -> None:
    streams.stream()[1].close()
    streams.open.when_idle(lambda: streams.called.append("idle"))
    streams.wait()
    streams.open.clear()
    assert streams.called == ["sent", "idle"] and not len(streams.open)


def test_a_stream_that_its_owner_has_closed_is_waited_for(streams: Streams) -> None:
    closed, ours, _ = streams.stream()
    streams.stream()  # stays open
    streams.stream(has_owner=False)
    ours.close()
    streams.wait()
    assert not streams.called
    for _ in range(2):
        streams.open.remove(closed)
    assert streams.called == ["sent"]


def test_a_socket_without_another_owner_counts_as_closed(streams: Streams) -> None:
    opening, ours, theirs = streams.stream(alone=True)
    ours.sendall(b"last words")
    streams.wait()
    assert not streams.called
    assert theirs.recv(100) == b"last words" and theirs.recv(100) == b""
    streams.open.remove(opening)
    assert streams.called == ["sent"]


def test_with_open_streams_only_nothing_is_waited_for(streams: Streams) -> None:
    streams.stream()
    streams.wait()
    assert streams.called == ["sent"]
