"""What a program says on its standard error: some of it for the log, and the last line for an error."""

from __future__ import annotations

import logging
import time

from .errors import ConnectError

__all__ = ["StandardError", "program_error"]

logger = logging.getLogger("relay")

_LONGEST = 300  # bytes that are kept of a line
_AT_ONCE = 50  # lines of one chunk that are looked at
_RATE = 20  # lines that are logged in a second


class StandardError:
    """Lines of one program, which are logged at the level info, bounded in their length and in their number.

    :param name: the program's name.
    """

    def __init__(self, name: str) -> None:
        self.last = ""
        self._name = name
        self._rest = b""
        self._second = 0  # in which lines are counted
        self._logged = self._left_out = 0

    def feed(self, data: bytes) -> None:
        """Take what has come; takes little time, whatever that is."""
        *lines, rest = (self._rest + data).rsplit(b"\n", _AT_ONCE)
        self._rest = rest[:_LONGEST]
        for line in lines:
            more = line.count(b"\n")
            if more:  # the first one may hold many, which are not looked at
                self._left_out += more + 1
            else:
                self._say(line)

    def end(self) -> None:
        """There is no more."""
        rest, self._rest = self._rest, b""
        self._say(rest)
        self._tell_left_out()

    def _say(self, line: bytes) -> None:
        text = _printable(line[:_LONGEST])
        if not text:
            return
        self.last = text
        second = int(time.monotonic())
        if second != self._second:
            self._tell_left_out()
            self._second, self._logged = second, 0
        if self._logged < _RATE:
            self._logged += 1
            logger.info("%s: %s", self._name, text)
        else:
            self._left_out += 1

    def _tell_left_out(self) -> None:
        number, self._left_out = self._left_out, 0
        if number:
            logger.info("%s: it said %d lines more", self._name, number)


def program_error(name: str, how: str, last: str) -> ConnectError:
    """The end of a program that was a failure.

    :param name: the program's.
    :param how: it has ended.
    :param last: the last line that it said on its standard error, if any.
    """
    return ConnectError(f"{name}: {how}" + (f" ({last})" if last else ""), reason="target_reset")


def _printable(line: bytes) -> str:
    """A line of others as text that is safe to show."""
    text = line.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else " " for char in text).strip()
