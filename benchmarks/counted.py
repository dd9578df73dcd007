"""User instructions of a program, counted by valgrind's callgrind, which sees each of them."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .machine import MeasurementError, Process, family, program, read, relay_command, run, threads

PATIENCE = 600.0  # seconds for a program to listen, or to end
SOON = 60.0  # seconds for one that was asked something to be asleep again
LOOK = 0.0005  # seconds between two looks at its threads
RELAY = Path(__file__).parent / "peers" / "counted_relay.py"
STATE = re.compile(r"^State:\t(.)", re.MULTILINE)
TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)


class CountedProcess(Process):
    """A program that listens, run by callgrind.

    :param arguments: the argument list.
    :param port: where it will listen on 127.0.0.1.
    :param directory: its own, for what callgrind writes.
    :param start: whether its start is counted, too.
    """

    def __init__(self, arguments: list[str], port: int, directory: Path, *, start: bool = False) -> None:
        self._directory = directory
        words = under_callgrind(arguments, directory, start)
        super().__init__(words, port, directory / "log", patience=PATIENCE)

    def begin(self) -> None:
        """Count from now on."""
        self._ask("instrumentation on")
        self._ask("zero")

    def count(self) -> int:
        """The instructions since :meth:`begin`, or since the last call."""
        self._ask("dump")
        return total_of(max(self._directory.glob("counted.*"), key=lambda path: int(path.suffix[1:])))

    def _ask(self, request: str) -> None:
        run([program("vgdb"), f"--vgdb-prefix={self._directory / 'vgdb'}", f"--pid={self.pid}", request], PATIENCE)


def under_callgrind(arguments: list[str], directory: Path, start: bool = True) -> list[str]:
    """The argument list that runs a program and counts, with nothing in its environment that could differ."""
    given = []
    if arguments[0] == "env":
        given, arguments = arguments[1:2], arguments[2:]
    if arguments[0] == relay_command():
        arguments = [sys.executable, "-P", str(RELAY), *arguments[1:]]
    callgrind = [
        *(program("valgrind"), "--quiet", "--tool=callgrind", "--fair-sched=yes", "--max-threads=2000"),
        f"--instr-atstart={'yes' if start else 'no'}",
        *(f"--callgrind-out-file={directory / 'counted'}", f"--vgdb-prefix={directory / 'vgdb'}"),
    ]
    environment = [
        "env",
        "-i",
        f"PATH={os.environ['PATH']}",
        f"HOME={directory}",
        "PYTHONHASHSEED=0",
        "LC_ALL=C.UTF-8",
        *given,
    ]
    return [*environment, *callgrind, *arguments]


def whole(arguments: list[str], directory: Path) -> int:
    """The instructions of a program from its start to its end.

    It runs once without being counted, so that its modules are compiled.
    """
    run(arguments, PATIENCE)
    run(under_callgrind(arguments, directory), PATIENCE)
    return total_of(directory / "counted")


def total_of(path: Path) -> int:
    """The instructions in a file of callgrind."""
    found = TOTALS.search(path.read_text())
    if found is None:
        raise MeasurementError(f"{path}: no total")
    return int(found[1])


def started() -> list[int]:
    """The process ids of all :class:`Process` that this program has started, with their children.

    It may have started others, which may be busy for ever: a test-suite does.
    """
    return [pid for process in Process.running for pid in family(process.pid)]


def wait_until_asleep(pids: Sequence[int]) -> None:
    """Return once no thread of these programs runs: they have done all that they were asked."""
    deadline = time.monotonic() + SOON
    before = _asleep(pids)
    while True:
        time.sleep(LOOK)
        now = _asleep(pids)
        if now and now == before:
            return
        if time.monotonic() > deadline:
            raise MeasurementError(f"still busy, or ended, after {SOON:.0f} s")
        before = now


def _asleep(pids: Sequence[int]) -> list[str]:
    """For each thread how often it has gone to sleep; empty if one is awake, or has just ended."""
    found = []
    for pid in pids:
        for thread in threads(pid):
            status = read(thread / "status")
            state = STATE.search(status)
            if state is None or state[1] != "S":
                return []
            found.append(status[state.end() :])
    return found
