"""``relay.transports.ssh.openssh.master``: each row of the table of states, with a process that the test plays."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from state_table import rows_of

from relay.addresses.ssh import SSHServer
from relay.transports.ssh.connection import Settings
from relay.transports.ssh.openssh import master as module
from relay.transports.ssh.openssh.host_keys import UNWRITTEN
from relay.transports.ssh.openssh.master import Master, MasterState

READY = b"debug1: Entering interactive session.\n"


class Played(Master):
    """A master whose process is a pipe and a note of its signals; the test runs its loop."""

    def __init__(self) -> None:
        self.facts: list[str] = []
        super().__init__(Settings(SSHServer("h"), "127.0.0.1", 22, "me", host_key_name="h"), None, self)
        self.has_control = True
        self._pid, self.exit = os.pipe()
        self._stderr.descriptor, self.says = os.pipe()
        os.set_blocking(self._stderr.descriptor, False)
        self._process: Any = SimpleNamespace(returncode=None, pid=-1, wait=lambda: 255)
        self._askpass: Any = SimpleNamespace(close=lambda: None)
        self._remove: Any = lambda: None
        self._thread = threading.current_thread()  # so that close() does not wait
        self.loop.stop = lambda: None  # type: ignore[method-assign]

    def line(self, line: bytes) -> bool:
        return False

    def is_urgent(self) -> bool:
        return False

    def ready(self) -> None:
        if not self.has_control:
            raise FileNotFoundError("no control socket")

    def ended(self, error: Exception, *, is_lost: bool) -> None:
        self.facts.append("lost" if is_lost else "ended")

    def _signal(self, number: int) -> None:
        self.facts.append(signal.Signals(number).name)

    def do(self, event: str) -> list[str]:
        """Let an event happen; returns what follows from it."""
        self.facts.clear()
        if event.startswith("logged in"):
            self.has_control = "no control socket" not in event
            os.write(self.says, READY)
            self._read()
        elif event == "host key cannot be written":
            os.write(self.says, UNWRITTEN.encode() + b" (/x).\n")
            self._read()
        elif event == "close":
            self.close()
        else:
            assert event == "process ends"
            self._on_end(0, 0.0)
        self.loop._run_calls()
        if event == "close" and "SIGTERM" in self.facts:
            self.facts.append("soon" if self._patience.due - time.monotonic() > 0.1 else "at once")
        return list(self.facts)

    def end(self) -> None:
        if self._state is not MasterState.ENDED:
            self._on_end(0, 0.0)
        self.loop.close()
        self.settled.close()
        os.close(self.exit)
        os.close(self.says)


WAY = {
    "LOGIN": [],
    "UP": ["logged in"],
    "REFUSED": ["host key cannot be written"],
    "CLOSING": ["close"],
    "ENDED": ["process ends"],
}
STATE_ROWS = [
    ("LOGIN", "logged in", "UP", []),
    ("LOGIN", "logged in, but no control socket", "LOGIN", []),
    ("LOGIN", "host key cannot be written", "REFUSED", ["SIGTERM"]),
    ("LOGIN", "close", "CLOSING", ["SIGTERM", "at once"]),
    ("LOGIN", "process ends", "ENDED", ["SIGKILL", "ended"]),
    ("UP", "logged in", "UP", []),
    ("UP", "close", "CLOSING", ["SIGTERM", "soon"]),
    ("UP", "process ends", "ENDED", ["SIGKILL", "lost"]),
    ("REFUSED", "close", "CLOSING", ["SIGTERM", "at once"]),
    ("REFUSED", "process ends", "ENDED", ["SIGKILL", "ended"]),
    ("CLOSING", "logged in", "CLOSING", []),
    ("CLOSING", "close", "CLOSING", ["SIGTERM", "at once"]),
    ("CLOSING", "process ends", "ENDED", ["SIGKILL", "ended"]),
    ("ENDED", "close", "ENDED", []),
]


@pytest.fixture
def played() -> Any:
    made = Played()
    yield made
    made.end()


@pytest.mark.parametrize(("state", "event", "following", "facts"), STATE_ROWS)
def test_each_row_of_the_table(played: Played, state: str, event: str, following: str, facts: list[str]) -> None:
    for step in WAY[state]:
        played.do(step)
    assert played._state.name == state
    if state == "ENDED":
        played._process.returncode = 255
    assert played.do(event) == facts
    assert played._state.name == following


def test_the_table_has_these_rows() -> None:
    assert rows_of(module) == [row[:3] for row in STATE_ROWS]


def test_a_master_that_is_closed_while_it_logs_in_stays_closed(played: Played) -> None:
    played.ready = played.close  # type: ignore[method-assign]
    played.do("logged in")
    assert played._state is MasterState.CLOSING and played.has_logged_in
