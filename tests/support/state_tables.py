"""The tables of state machines, read from docstrings: state, event, next state and action in columns of one table."""

from __future__ import annotations

import re
from collections.abc import Sequence


def rows(text: str | None, states: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Return each row of the first table of a docstring whose header begins with state and event.

    :param text: the docstring.
    :param states: all of them; ``any`` stands for each, and ``any but X and Y`` for each other than those.
    :returns: state, event, next state, and the action up to its first colon.
    """
    lines = iter((text or "").splitlines())
    for line in lines:
        if re.match(r"=+( =+){3}$", line):
            starts = [found.start() for found in re.finditer(r"=+", line)]
            if next(lines).split()[:2] == ["state", "event"]:
                break
    next(lines)
    table: list[list[str]] = []
    for line in lines:
        if line.startswith("="):
            break
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        if cells[1]:
            table.append(cells)
        else:  # a row goes on
            table[-1] = [f"{old} {new}".strip() for old, new in zip(table[-1], cells, strict=True)]
    return [
        (state, event, following, action.partition(":")[0])
        for which, event, following, action in table
        for state in _each(which, states)
    ]


def _each(which: str, states: Sequence[str]) -> list[str]:
    if not which.startswith("any"):
        return [which]
    others = which.removeprefix("any but ").split(" and ")
    return [state for state in states if state not in others]
