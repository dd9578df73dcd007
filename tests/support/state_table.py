"""Reads the table of states from a module's docstring, so that a test can compare it with the rows that it runs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import ModuleType


def rows_of(module: ModuleType, columns: int = 3) -> list[tuple[str, ...]]:
    """Read the only table of a module's docstring: a simple table of reStructuredText.

    :param columns: how many to return, from the left: the last one of a table says in prose what is done.
    :returns: its rows; a line whose first or second column is empty goes on with the row above.
    """
    lines = (module.__doc__ or "").splitlines()
    borders = [number for number, line in enumerate(lines) if re.fullmatch(r"=+( +=+)+", line)]
    assert len(borders) == 3, "expected one table, with a head"
    spans = [match.span() for match in re.finditer("=+", lines[borders[0]])]
    rows: list[list[str]] = []
    for line in lines[borders[1] + 1 : borders[2]]:
        cells = [line[start:end].strip() for start, end in spans[:columns]]
        if all(cells[:2]):
            rows.append(cells)
        else:
            rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)]
    return [tuple(row) for row in rows]


def each_row_of(module: ModuleType, states: Iterable[str]) -> list[tuple[str, str, str, str]]:
    """Read a table with a row for each state: ``any`` stands for all of them, and ``any but X and Y`` for the others.

    :param states: all of them.
    :returns: state, event, next state, and the action up to its first colon.
    """
    return [
        (state, event, following, action.partition(":")[0])
        for which, event, following, action in rows_of(module, 4)
        for state in ([which] if not which.startswith("any") else states)
        if state not in which.removeprefix("any but ").split(" and ") or state == which
    ]
