"""A plugin of pytest that plays a busy machine: a test that depends on luck fails each time, not once in a thousand.

``tests/check-races`` loads it. ``RELAY_SLOW`` names what is slow, words with commas between them:

``connects``
    The connect of a test returns late, so that a reset of its client comes first.
``loops``
    Each loop of relay waits before it handles the events of a turn, so that tests look before relay has acted.
``logs``
    Each record of relay's log comes late, so that tests look before it is there.
``threads``
    Python changes threads after each microsecond.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import sys
import time
from typing import Any

from relay.eventloop.loop import Loop

CONNECT = 0.02  # seconds by which a connect is late
TURN = 0.004  # seconds that a loop waits at most
RECORD = 0.02  # seconds by which a record of the log is late
SWITCH = 1e-6  # seconds between two changes of threads


class SlowPoller:
    """A poller whose events come late."""

    def __init__(self, poller: Any) -> None:
        self._poller = poller
        self._random = random.Random(os.getpid())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)

    def poll(self, timeout: float | None = None, maxevents: int = -1, /) -> list[tuple[int, int]]:
        """Wait for events, and then a little longer."""
        events: list[tuple[int, int]] = self._poller.poll(timeout, maxevents)
        time.sleep(self._random.random() * TURN)
        return events


def slow_loops() -> None:
    """Give each new loop a slow poller."""
    make = Loop.__init__

    def make_slow(self: Loop) -> None:
        make(self)
        self.poller = SlowPoller(self.poller)

    Loop.__init__ = make_slow  # type: ignore[method-assign]


def slow_connects() -> None:
    """Let the connects of the tests over TCP be late."""
    real = socket.socket.connect
    library = socket.__file__

    def connect(self: socket.socket, address: Any) -> None:
        real(self, address)
        frame = sys._getframe(1)
        if frame.f_code.co_filename == library and frame.f_back is not None:  # socket.create_connection
            frame = frame.f_back
        if self.family != socket.AF_UNIX and f"{os.sep}tests{os.sep}" in frame.f_code.co_filename:
            time.sleep(CONNECT)
            error = self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))

    socket.socket.connect = connect  # type: ignore[method-assign]


def slow_logs() -> None:
    """Let the records of relay's loggers be late."""
    real = logging.Logger.handle

    def handle(self: logging.Logger, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] == "relay":
            time.sleep(RECORD)
        real(self, record)

    logging.Logger.handle = handle  # type: ignore[method-assign]


for _word in filter(None, os.environ.get("RELAY_SLOW", "").split(",")):
    if _word == "threads":
        sys.setswitchinterval(SWITCH)
    else:
        {"connects": slow_connects, "logs": slow_logs, "loops": slow_loops}[_word]()
