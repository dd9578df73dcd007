"""Log lines about what an attacker can repeat at will: the first at once, then one a minute with their number."""

from __future__ import annotations

import logging
import math
from typing import Any

__all__ = ["RateLog"]

_INTERVAL = 60.0  # seconds between two lines


class RateLog:
    """Logs one kind of event, at most once in a minute. Belongs to one thread.

    :param logger: where to.
    :param level: of the lines; what is left out goes to ``DEBUG``.
    """

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._logger = logger
        self._level = level
        self._next = -math.inf
        self._left_out = 0

    def log(self, now: float, text: str, *values: Any) -> None:
        """Log an event.

        :param now: monotonic seconds.
        :param text: a format for ``values``, as loggers take it.
        """
        if now < self._next:
            self._left_out += 1
            self._logger.debug(text, *values)
            return
        left_out, self._left_out = self._left_out, 0
        self._next = now + _INTERVAL
        if left_out:
            text, values = text + "; %d more like this since the last such line", (*values, left_out)
        self._logger.log(self._level, text, *values)
