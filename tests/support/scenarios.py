"""Scenarios that take minutes, side by side in one program, and a journal of what led to a failure."""

from __future__ import annotations

import collections
import json
import logging
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import i2pd
from helpers import Thread

journal = logging.getLogger("scenario")

CRASHED = "i2pd has crashed"  # how a problem begins that is the router's own
PARTED = "i2pd has parted"  # and one that is that of two routers

_LOG = ".stderr"  # how the names of the logs of programs end
_LINES = 4000  # of the journal, and of a router's log
_networks: list[i2pd.Network] = []  # the one of the scenarios that run

# Makes a network below a folder, and gives it with what scenarios are called with.
Ground = Callable[[Path], AbstractContextManager[tuple[Any, ...]]]


class PartedError(AssertionError):
    """Two routers that do not bring each other the streams of any program: what is tested cannot work either."""


def check_routers() -> None:
    """Fail if a router has crashed, which nothing here can repair."""
    crashed = [router for network in _networks for router in network.routers if router.crashed]
    assert not crashed, f"{CRASHED}: {', '.join(router.folder.name for router in crashed)}"


def read_line(file: Any, seconds: float = math.inf) -> Any:
    """Return the next line of a program; fail if a router crashes meanwhile, for then there may never be one.

    :param seconds: to wait for it at most.
    """
    until = time.monotonic() + seconds
    reading = Thread(file.readline)
    while reading.is_alive():
        check_routers()
        assert time.monotonic() < until, f"the program has written no line for {seconds:g} s"
        reading.join(0.2)
    return reading.result()


def program_log(name: str) -> Any:
    """Return a new file for the standard error of a program, which is shown with a failure; its user closes it."""
    folder = _networks[0].routers[0].folder.parent
    descriptor, _ = tempfile.mkstemp(_LOG, f"{name}-", folder)
    return open(descriptor, "wb")


def _logs(network: i2pd.Network, kept: _Journal) -> list[str]:
    """Return the ends of the logs of routers, of this program and of the others, each with its name."""
    routers = {router.folder.name: router.log() for router in network.routers}
    files = sorted(network.routers[0].folder.parent.glob(f"*{_LOG}"), key=lambda file: file.stat().st_mtime)
    programs = {file.name: file.read_text(errors="replace") for file in files}
    return [f"{name}:\n{_end_of(log)}" for name, log in {**routers, "the journal": kept.text(), **programs}.items()]


class _Journal(logging.Handler):
    """The last lines of every log of this program, each with the seconds since the beginning."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._begun = time.time()
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        seconds = record.created - self._begun
        self._lines.append(f"{seconds:7.1f} {record.threadName}: {record.getMessage()}")

    def text(self) -> str:
        """All of it."""
        return "\n".join(self._lines.copy())


def run_all(scenarios: Mapping[str, Callable[..., Any]], ground: Ground, latest: float) -> None:
    """Print one line of JSON: a scenario → what it returned, and what went wrong or nothing.

    If a router has crashed, or two of them do not reach each other, which is not what is tested, the scenarios that
    failed for that run once more, at new routers.

    :param scenarios: each is called on a thread of its own; only those that the program's second argument and the
        following ones name, if there are any.
    :param ground: makes a network below a folder, and what the scenarios are called with.
    :param latest: seconds that they may take, each time.
    """
    kept = _Journal()
    logging.basicConfig(level=logging.DEBUG, handlers=[kept])
    outcomes: dict[str, tuple[Any, str]] = {}
    wanted = sys.argv[2:] or list(scenarios)
    for attempt in ("first", "second"):
        folder = Path(sys.argv[1], attempt)
        folder.mkdir()
        with ground(folder) as (network, *arguments):
            _networks[:] = [network]
            outcomes |= _outcomes({name: scenarios[name] for name in wanted}, kept, arguments, latest)
        wanted = [name for name, (_, problem) in outcomes.items() if problem.startswith((CRASHED, PARTED))]
        if not wanted:
            break
    print(json.dumps(outcomes), flush=True)


def _outcomes(
    scenarios: Mapping[str, Callable[..., Any]], kept: _Journal, arguments: Sequence[Any], latest: float
) -> dict[str, tuple[Any, str]]:
    """Run the scenarios side by side; return what each one returned, and what went wrong or nothing."""

    def report(problem: str) -> str:
        # Routers say most; some machines show the end only, and the tests look at the beginning.
        return "\n\n".join([problem, *_logs(_networks[0], kept), problem])

    def outcome(scenario: Callable[..., Any]) -> tuple[Any, str]:
        try:
            return scenario(*arguments), ""
        except BaseException as error:  # noqa: BLE001 - it is reported
            said = traceback.format_exc()
            if isinstance(error, PartedError):
                said = f"{PARTED}: {error}\n{said}"
            try:
                check_routers()
            except AssertionError as crash:
                said = f"{crash}\n{said}"
            return None, report(said)

    threads = {name: Thread(outcome, scenario) for name, scenario in scenarios.items()}
    for name, thread in threads.items():
        thread.name = name
    until = time.monotonic() + latest

    def result(thread: Thread) -> tuple[Any, str]:
        try:
            return thread.result(max(0.0, until - time.monotonic()))
        except AssertionError:
            return None, report(f"it has not ended within {latest:g} s")

    return {name: result(thread) for name, thread in threads.items()}


def _end_of(log: str) -> str:
    return "\n".join(log.splitlines()[-_LINES:])
