"""Scenarios that take minutes, side by side in one program, and a journal of what led to a failure."""

from __future__ import annotations

import collections
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import i2pd
from helpers import Thread

__all__ = ["CRASHED", "PARTED", "PartedError", "check_routers", "journal", "read_line", "run_all"]

journal = logging.getLogger("scenario")

CRASHED = "i2pd has crashed"  # how a problem begins that is the router's own
PARTED = "i2pd has parted"  # and one that is that of two routers

_LINES = 4000  # of the journal, and of a router's log
_networks: list[i2pd.Network] = []


class PartedError(AssertionError):
    """Two routers that do not bring each other the streams of any program: what is tested cannot work either."""


def check_routers() -> None:
    """Fail if a router has crashed, which nothing here can repair."""
    crashed = [router for network in _networks for router in network.routers if router.crashed]
    assert not crashed, f"{CRASHED}: {', '.join(router.folder.name for router in crashed)}"


def read_line(file: Any) -> Any:
    """Return the next line of a program; fail if a router crashes meanwhile, for then there may never be one."""
    reading = Thread(file.readline)
    while reading.is_alive():
        check_routers()
        reading.join(0.2)
    return reading.result()


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


def run_all(scenarios: Mapping[str, Callable[..., Any]], network: i2pd.Network, *arguments: Any, latest: float) -> None:
    """Print one line of JSON: a scenario → what it returned, and what went wrong or nothing.

    :param scenarios: each is called with ``arguments``, on a thread of its own; only those that the program's second
        argument and the following ones name, if there are any.
    :param network: whose logs are shown with a failure.
    :param latest: seconds that they may take.
    """
    _networks.append(network)
    kept = _Journal()
    logging.basicConfig(level=logging.DEBUG, handlers=[kept])

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
            logs = [f"{router.folder.name}:\n{_end_of(router.log())}" for router in network.routers]
            return None, "\n\n".join([said, f"the journal:\n{kept.text()}", *logs])

    wanted = sys.argv[2:] or scenarios
    threads = {name: Thread(outcome, scenarios[name]) for name in wanted}
    for name, thread in threads.items():
        thread.name = name
    until = time.monotonic() + latest

    def result(thread: Thread) -> tuple[Any, str]:
        try:
            return thread.result(max(0.0, until - time.monotonic()))
        except AssertionError:
            return None, f"it has not ended within {latest:g} s\nthe journal:\n{kept.text()}"

    print(json.dumps({name: result(thread) for name, thread in threads.items()}), flush=True)


def _end_of(log: str) -> str:
    return "\n".join(log.splitlines()[-_LINES:])
