"""``relay.transports.program``: each row of the table of states, with a program that is only a number."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future

import pytest
from helpers import WAIT, wait_until
from state_table import rows_of

from relay.errors import ConnectError
from relay.eventloop import unix_reset
from relay.eventloop.background import IOThread
from relay.streams.promise import Promise
from relay.transports import program
from relay.transports.program import ProgramState, _Program

SOON = 1000.0  # seconds; the tests call what a timer would


class Child:
    """A process that is only a number; it ends when it is signalled, or when the test says so."""

    pid = 0
    status = 0

    def wait(self):
        return self.status


class Rig:
    """A program, and what was done to it. Its events are called on the I/O thread, as always."""

    def __init__(self, monkeypatch):
        self.signals = []
        self.future = Future()
        self.answer = Promise()
        self.child = Child()
        self.stream = self.copy = None
        monkeypatch.setattr(program, "begin", lambda *_, **__: self.future)
        monkeypatch.setattr(program, "_MOMENT", SOON)
        monkeypatch.setattr(program, "_PATIENCE", SOON)
        monkeypatch.setattr(program, "_signal_group", lambda _, number: self.signals.append(signal.Signals(number)))
        monkeypatch.setattr(os, "pidfd_open", lambda _: os.eventfd(0))
        self.io_thread = IOThread.acquire(self)  # it lasts as long as the test
        self.program = _Program("exec:it", "exec:it", None, self.answer.put, None, False)
        self.program.begin(["it"])

    def do(self, call, *arguments):
        """Call it on the I/O thread, and wait until all that it has asked for there is done."""
        failed = []

        def run():
            try:
                call(*arguments)
            except BaseException as error:  # noqa: BLE001  (raised below)
                failed.append(error)

        loop = self.io_thread.loop
        loop.call(run)
        for _ in range(3):
            done = threading.Event()
            loop.call(done.set)
            assert done.wait(WAIT)
        if failed:
            raise failed[0]

    def started(self):
        self.do(self.future.set_result, self.child)

    def failed(self):
        self.do(self.future.set_exception, OSError(24, "Too many open files"))

    def report(self):
        """Return the outcome that was reported; the stream is kept open."""
        outcome = self.answer.get(time.monotonic() + WAIT, None)
        self.stream = outcome
        return outcome

    def closed(self):
        self.do(self.program.closed)

    def reset(self):
        self.do(self.program.terminate)

    def time_is_over(self):
        self.do(self.program._end_it, time.monotonic())

    def ends(self, status=0):
        self.child.status = status
        self.do(self.program._on_exit, 0, 0.0)

    def finish(self):
        state = self.program._state
        if state is ProgramState.STARTING:
            self.failed()
        elif state in program._STARTED:
            self.ends()
        elif state is ProgramState.RESETTING:
            self.do(self.program._copies_closed, 0.0)
        if self.copy is not None:
            self.copy.close()
        if self.stream is not None:
            self.stream.close()
        self.io_thread.release(self)

    def abandon(self):
        """No test forks."""


@pytest.fixture
def rig(monkeypatch):
    made = Rig(monkeypatch)
    yield made
    made.finish()


def reads(rig):
    """The program has something to read, and has read some of it a moment ago."""
    rig.stream.socket.send(b"bytes")
    rig.time_is_over()


def deadline(rig):
    rig.do(rig.program._too_late, 0.0)
    with pytest.raises(ConnectError, match="not started in time"):
        rig.report()


def started(rig):
    rig.started()
    assert rig.report().status is None


def not_started(rig):
    rig.failed()
    with pytest.raises(ConnectError, match="cannot be started: Too many open files"):
        rig.report()


def ends_well(rig):
    rig.ends()
    assert rig.stream.socket.recv(1) == b""


def fails(rig):
    """Let it fail, while another process keeps a copy of its end."""
    rig.copy = rig.program._theirs.dup()
    rig.ends(3)
    assert rig.stream.failure().reason == "target_reset"


def fails_when_closed(rig):
    rig.stream.socket.close()
    rig.ends(3)


def a_bug(rig):
    rig.do(rig.program.crashed, 0.0)


def copies_are_closed(rig):
    rig.copy.close()
    wait_until(lambda: rig.program._far is None)
    with pytest.raises(ConnectionResetError):
        rig.stream.socket.recv(1)


def copies_stay_open(rig):
    rig.do(rig.program._copies_closed, 0.0)


TERM, KILL = signal.SIGTERM, signal.SIGKILL
RUNNING = [started]
LEAVING = [started, Rig.closed]
TERMINATED = [started, Rig.reset]
RESETTING = [started, fails]
WAY = {
    "STARTING": [],
    "RUNNING": RUNNING,
    "LEAVING": LEAVING,
    "TERMINATED": TERMINATED,
    "RESETTING": RESETTING,
    "STARTED": RUNNING,
    "any": [started, ends_well],
}
# The columns of the table, then the event, and the signals that it sends. At the end its process group is killed.
ROWS = [
    ("STARTING", "started", "RUNNING", started, []),
    ("STARTING", "cannot be started", "OVER", not_started, []),
    ("STARTING", "deadline", "STARTING", deadline, []),
    ("RUNNING", "the stream is closed", "LEAVING", Rig.closed, []),
    ("RUNNING", "the stream is reset", "TERMINATED", Rig.reset, [TERM]),
    ("LEAVING", "the time is over, it reads", "LEAVING", reads, []),
    ("LEAVING", "the time is over", "TERMINATED", Rig.time_is_over, [TERM]),
    ("LEAVING", "the stream is reset", "TERMINATED", Rig.reset, [TERM]),
    ("TERMINATED", "the stream is reset", "TERMINATED", Rig.reset, [TERM]),
    ("TERMINATED", "the time is over", "TERMINATED", Rig.time_is_over, [KILL]),
    ("STARTED", "it ends well", "OVER", ends_well, [KILL]),
    ("STARTED", "it fails", "OVER", fails_when_closed, [KILL]),
    ("STARTED", "it fails", "RESETTING", fails, [KILL]),
    ("STARTED", "a bug in a handler", "the same", a_bug, [KILL]),
    ("RESETTING", "the copies are closed", "OVER", copies_are_closed, []),
    ("RESETTING", "the time is over", "OVER", copies_stay_open, []),
    ("any", "another one", "the same", Rig.closed, []),
]


def test_the_table_has_the_same_rows():
    assert rows_of(program) == [row[:3] for row in ROWS]


@pytest.mark.parametrize(("state", "event", "next_state", "act", "signals"), ROWS)
def test_each_row(rig, monkeypatch, state, event, next_state, act, signals):
    if not unix_reset_works() and next_state == "RESETTING":
        pytest.skip("this machine has no reset of Unix sockets")
    for step in WAY[state]:
        step(rig)
    rig.signals.clear()
    before = rig.program._state
    act(rig)
    assert rig.program._state is (before if next_state == "the same" else ProgramState[next_state])
    assert rig.signals == signals


@pytest.mark.parametrize("state", ["RUNNING", "LEAVING", "TERMINATED"])
def test_what_holds_for_each_that_has_started(rig, state):
    for step in WAY[state]:
        step(rig)
    ends_well(rig)
    assert rig.program._state is ProgramState.OVER


def unix_reset_works():
    near, far = unix_reset.socketpair()
    with near, far:
        copy = unix_reset.leave_unread(near)
        if copy is not None:
            copy.close()
    return copy is not None
