"""Log lines about what an attacker can repeat at will: the first at once, then a few a minute with their number."""

from __future__ import annotations

import logging
import math
from typing import Any

__all__ = ["RateLog"]

_INTERVAL = 60.0  # seconds between two lines


class RateLog:
    """Logs one kind of event, at most so often in a minute. Belongs to one thread.

    :param logger: where to.
    :param level: of the lines; what is left out goes to ``DEBUG``.
    :param most: the lines of one minute.
    """

    def __init__(self, logger: logging.Logger, level: int, most: int = 1) -> None:
        self._logger = logger
        self._level = level
        self._most = most
        self._next = -math.inf
        self._lines = 0  # until then
        self._left_out = 0

    def log(self, now: float, text: str, *values: Any) -> None:
        """Log an event.

        :param now: monotonic seconds.
        :param text: a format for ``values``, as loggers take it.
        """
        if now >= self._next:
            self._next, self._lines = now + _INTERVAL, 0
        if self._lines >= self._most:
            self._left_out += 1
            self._logger.debug(text, *values)
            return
        left_out, self._left_out = self._left_out, 0
        self._lines += 1
        if left_out:
            text, values = text + "; %d more like this since the last such line", (*values, left_out)
        self._logger.log(self._level, text, *values)
