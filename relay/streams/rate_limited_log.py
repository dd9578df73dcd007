"""Log lines about what a client can repeat at will: the first ones of a minute, then the number of the others."""

from __future__ import annotations

import logging
import math
from typing import Any

from ..eventloop.loop import Timer, Timers

_INTERVAL = 60.0  # seconds between two lines


class RateLog:
    """Logs one kind of event, at most so often in a minute. Belongs to one thread.

    :param logger: where to.
    :param level: of the lines; what is left out goes to ``DEBUG``.
    :param most: the lines of one minute.
    :param timers: of the thread's loop. The last event that was left out then has a line at the end of its minute;
        without them, the number waits for the next event.
    """

    def __init__(self, logger: logging.Logger, level: int, most: int = 1, timers: Timers | None = None) -> None:
        self._logger = logger
        self._level = level
        self._most = most
        self._next = -math.inf
        self._lines = 0  # until then
        self._left_out = 0
        self._last: tuple[str, tuple[Any, ...]] = "", ()  # that was left out
        self._timer = Timer(timers, self.on_time) if timers is not None else None

    def log(self, now: float, text: str, *values: Any, error: BaseException | None = None) -> None:
        """Log an event.

        :param now: monotonic seconds.
        :param text: a format for ``values``, as loggers take it.
        :param error: whose traceback follows; ``None`` for none.
        """
        if now >= self._next:
            self._next, self._lines = now + _INTERVAL, 0
        if self._lines >= self._most:
            self._left_out += 1
            # The values are kept and no text: what is left out costs no formatting.
            self._last = text, values
            self._logger.debug(text, *values)
            # Only for the first that was left out, since a timer for each would cost more than the line.
            if self._timer is not None and self._left_out == 1:
                self._timer.start(self._next, now)
            return
        left_out, self._left_out = self._left_out, 0
        self._write(text, values, left_out, error)

    def _write(self, text: str, values: tuple[Any, ...], left_out: int, error: BaseException | None = None) -> None:
        self._lines += 1
        if left_out:
            text, values = text + "; %d more like this since the last such line", (*values, left_out)
        self._logger.log(self._level, text, *values, exc_info=error)

    def on_time(self, now: float) -> None:
        """Log the last event that was left out, unless the next one has done so; also for an owner that ends."""
        if left_out := self._left_out:
            self._next, self._lines, self._left_out = now + _INTERVAL, 0, 0
            self._write(*self._last, left_out - 1)
