"""The live table: its layout, and the terminal on which it is drawn in place below the lines that are printed.

The layout turns values into lines of a given width and height, and knows no terminal.
"""

from __future__ import annotations

import logging
import sys
import textwrap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from ..addresses.printable import printable

_GAP = 2  # columns between two columns of the table; one where there is no room
_SMALLEST = 6  # width of a shrunk column on a very narrow terminal
_ERROR_LINES = 2  # of one error


class Line(NamedTuple):
    """A line on the terminal."""

    text: str
    """No wider than the terminal."""
    style: str = ""
    """A style of Rich, such as ``bold``."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    :param title: its first line.
    :param least: the width to which it may shrink; ``None`` for a fixed width.
    :param optional: whether it is left out on a narrow terminal; the last of these first.
    :param is_figure: whether it is aligned to the right.
    :param is_name: whether it shrinks after all others, and in the middle: names often differ at their ends.
    """

    title: str
    least: int | None = None
    optional: bool = False
    is_figure: bool = False
    is_name: bool = False


@dataclass(frozen=True, slots=True)
class Content:
    """Content of the live table.

    :param head: sentences above the table.
    :param columns: the columns.
    :param rows: the cells of each row, the most important row first.
    :param errors: sentences below the table.
    :param ended: a line for each of the last connections that ended, the newest first.
    :param foot: sentences below all.
    """

    head: Sequence[str]
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    errors: Sequence[str] = ()
    ended: Sequence[str] = ()
    foot: Sequence[str] = ()


def lay_out(content: Content, width: int, height: int) -> list[Line]:
    """Lay out the content for a terminal of this size.

    :param content: the content.
    :param width: columns of the terminal.
    :param height: lines that may be used. Where it is too small, rows, errors and ended connections are left out, and a
        line says how many.
    :returns: at most ``height`` lines, none of them wider than ``width``.
    """
    head = _wrapped(content.head, width)
    foot = _wrapped(content.foot, width)
    room = max(2, height - len(head) - len(foot) - 1)  # for the rows, and what stands below them
    errors = _errors(content.errors, width, max(2, room // 3))
    room -= len(errors)
    ended = _ended(content.ended, width, min(6, max(0, room - min(len(content.rows), room * 2 // 3))))
    table = _table(content, width, max(1, room - len(ended)))
    picture = [*(Line(text) for text in head), *table, *errors, *ended, *(Line(text) for text in foot)]
    return [Line(_cut(text, width).rstrip(), style) for text, style in picture[:height]]


def _table(content: Content, width: int, room: int) -> list[Line]:
    rows, left = _first(content.rows, room)
    cells = [[printable(cell) for cell in row] for row in rows]
    shown, widths, gap = _fit(content.columns, cells, width)
    titles = [column.title for column in content.columns]

    def line(row: Sequence[str]) -> str:
        made = [_aligned(row[number], widths[number], content.columns[number]) for number in shown]
        return (" " * gap).join(made)

    table = [Line(line(titles), "bold"), *(Line(line(row)) for row in cells)]
    if left:
        table.append(Line(f"and {left} more", "dim"))
    return table


def _first(items: Sequence[Sequence[str]], room: int) -> tuple[Sequence[Sequence[str]], int]:
    """Return the items that fit, and the number of the others, which takes a line of its own."""
    if len(items) <= room:
        return items, 0
    return items[: room - 1], len(items) - (room - 1)


def _fit(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> tuple[list[int], dict[int, int], int]:
    """Choose the columns, their widths and the gap between them."""
    natural = {
        number: max(cell_len(column.title), *(cell_len(row[number]) for row in rows), 0)
        for number, column in enumerate(columns)
    }
    least = {
        number: natural[number] if column.least is None or column.is_name else min(natural[number], column.least)
        for number, column in enumerate(columns)
    }
    shown, gap = list(natural), _GAP

    def needed() -> int:
        return sum(least[number] for number in shown) + gap * (len(shown) - 1)

    for number in reversed(range(len(columns))):
        if needed() > width and columns[number].optional:
            shown.remove(number)
    if needed() > width:
        gap = 1
    giving = [number for number in shown if columns[number].least is not None]
    for is_name in (False, True):
        shrinking = [number for number in giving if columns[number].is_name is is_name]
        while needed() > width and (widest := max(shrinking, key=least.__getitem__, default=None)) is not None:
            if least[widest] <= _SMALLEST:
                break
            least[widest] -= 1
    for number in giving:  # the first one gets the remaining room
        least[number] += max(0, min(natural[number] - least[number], width - needed()))
    return shown, least, gap


def _errors(errors: Sequence[str], width: int, room: int) -> list[Line]:
    lines: list[Line] = []
    for number, error in enumerate(errors):
        made = textwrap.wrap(
            printable(error), max(8, width), max_lines=_ERROR_LINES, placeholder=" …", subsequent_indent="  "
        )
        left = len(errors) - number
        if len(lines) + len(made) > room - (left > 1):
            lines.append(Line(f"and {left} more errors" if lines else printable(error), "red"))
            break
        lines += [Line(text, "red") for text in made]
    return lines


def _ended(ended: Sequence[str], width: int, room: int) -> list[Line]:
    if not ended or room < 2:
        return []
    return [Line("last ended", "bold"), *(Line(printable(text), "dim") for text in ended[: room - 1])]


def _wrapped(sentences: Sequence[str], width: int) -> list[str]:
    return [line for sentence in sentences for line in textwrap.wrap(printable(sentence), max(1, width))]


def _aligned(text: str, width: int, column: Column) -> str:
    text = _cut_in_the_middle(text, width) if column.is_name else _cut(text, width)
    return " " * (width - cell_len(text)) + text if column.is_figure else set_cell_size(text, width)


def _cut_in_the_middle(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    head = set_cell_size(text, width // 2)
    tail = text[-max(1, width) :]
    while tail and cell_len(tail) > width - 1 - cell_len(head):
        tail = tail[1:]
    return f"{head}…{tail}"


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else f"{set_cell_size(text, max(0, width - 1))}…"[: max(1, width)]


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
