"""The live table on a terminal, drawn in place below the lines that are printed."""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from .fleet_table import Content, Line, lay_out

logger = logging.getLogger("relay.cli")

_LEFT = 2  # lines of the terminal above the table, for what is printed

# Synchronized output: a terminal with this mode shows everything between the two at once; others ignore them.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_ERASE_BELOW = "\x1b[J"


class View(Protocol):
    """The content of the table; :attr:`closing` is shown in it once a signal has come."""

    closing: str

    def __call__(self) -> Content:
        """Return the current content."""
        ...


def live_table(view: View) -> LiveTable | None:
    """Make a live table on standard error, a context manager.

    :param view: the content.
    :returns: ``None`` if that is no terminal, or one that cannot move its cursor; the log says why.
    """
    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveTable(console, view)
    why = "TERM says that it cannot move its cursor" if console.is_terminal else "it is no terminal"
    logger.info("--watch: there is no live table on standard error: %s", why)
    return None


class LiveTable:
    """A table at the end of a terminal; lines that are printed appear above it.

    :param console: the terminal.
    :param view: the content.
    """

    def __init__(self, console: Console, view: View) -> None:
        self._console = console
        self.view = view
        self._lock = threading.RLock()  # one thread writes at a time: it erases what was drawn last
        self._drawn: list[Line] = []
        self._stderr: TextIO = sys.stderr
        self._stdout: TextIO | None = None

    def __enter__(self) -> Self:
        self._stderr = sys.stderr
        sys.stderr = _Above(self, self._stderr)
        if sys.stdout is not None and sys.stdout.isatty():  # a redirected standard output is left alone
            self._stdout = sys.stdout
            sys.stdout = _Above(self, self._stdout)
        self._write(_HIDE)
        self.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            sys.stderr = self._stderr
            if self._stdout is not None:
                sys.stdout = self._stdout
            self._write(self._erased() + _SHOW)
            self._drawn = []

    def refresh(self) -> None:
        """Draw the current content."""
        content = self.view()
        with self._lock:
            width, height = self._console.size
            lines = lay_out(content, width, max(1, height - _LEFT))
            self._draw("", lines)

    def print_above(self, text: str) -> None:
        """Print whole lines above the table; from any thread."""
        with self._lock:
            self._draw(text, self._drawn)

    def _draw(self, above: str, lines: list[Line]) -> None:
        """Erase the table, print what goes above it and draw the table again, in one write."""
        erased = self._erased()
        with self._console.capture() as captured:
            for number, line in enumerate(lines):
                end = "\n" if number < len(lines) - 1 else ""
                self._console.print(Text(line.text, line.style), no_wrap=True, overflow="crop", crop=True, end=end)
        self._drawn = lines
        self._write(f"{_BEGIN}{erased}{above}{captured.get()}{_END}")

    def _erased(self) -> str:
        """Return what erases the table. A terminal that has become narrower may have wrapped its lines."""
        if not self._drawn:
            return ""
        width, height = self._console.size
        rows = sum(max(1, -(-cell_len(line.text) // max(1, width))) for line in self._drawn)
        up = min(rows, height) - 1
        to_the_first = f"\x1b[{up}A" if up else ""
        return f"\r{to_the_first}{_ERASE_BELOW}"

    def _write(self, text: str) -> None:
        try:
            self._stderr.write(text)
            self._stderr.flush()
        except OSError:
            pass  # the terminal is gone


class _Above:
    """Replacement of a stream: whole lines are written above the table."""

    def __init__(self, table: LiveTable, stream: TextIO) -> None:
        self._table = table
        self._stream = stream
        self._begun = threading.local()  # the unfinished line of each thread

    def write(self, text: str) -> int:
        whole, newline, rest = (getattr(self._begun, "text", "") + text).rpartition("\n")
        self._begun.text = rest
        if newline:
            self._table.print_above(whole + newline)
        return len(text)

    def flush(self) -> None:
        pass  # each line is flushed when it is printed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
