"""The last lines of the log, for the status page."""

from __future__ import annotations

import collections
import logging
from collections.abc import Sequence
from typing import NamedTuple

from ..addresses.printable import printable

LINES = 100
LONGEST = 500  # characters of a message


class LogLine(NamedTuple):
    """One line of the log."""

    time: float
    """Seconds since 1970."""
    level: str
    """``debug``, ``info``, ``warning``, ``error`` or ``critical``."""
    logger: str
    """The name of the logger, such as ``relay.ssh``."""
    message: str
    """The text, without control characters."""


class RecentLog(logging.Handler):
    """Handler that keeps the last :data:`LINES` records as text.

    It keeps no record itself: its arguments would stay alive. A finished connection is left out, because it has a
    record of its own, and many of them would displace every other line.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: collections.deque[LogLine] = collections.deque(maxlen=LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of a record."""
        if hasattr(record, "connection"):
            return
        try:
            message = record.getMessage()[: LONGEST + 1]
        except Exception:  # noqa: BLE001  (the handler of standard error reports this mistake; the caller is innocent)
            return
        text = printable(" ".join(message.splitlines()), LONGEST)
        self._lines.append(LogLine(record.created, record.levelname.lower(), record.name, text))

    def lines(self) -> Sequence[LogLine]:
        """Return the lines, oldest first; from any thread."""
        return tuple(self._lines.copy())

    def install(self) -> None:
        """Keep what the loggers of relay write, until :meth:`close`."""
        logging.getLogger("relay").addHandler(self)

    def close(self) -> None:
        """Keep nothing more. Idempotent."""
        logging.getLogger("relay").removeHandler(self)
        super().close()
