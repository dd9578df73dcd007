"""The layout of the live table: values become lines of a given width and height. Nothing here knows a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

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
