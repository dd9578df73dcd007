"""Rows of a matrix of parameters: so few that each value still occurs, or each pair of values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

FAR_ENDS = [("paramiko", "embedded"), ("paramiko", "sshd"), ("openssh", "sshd")]
"""Values of the fixtures ``backend`` and ``far_end`` that meet."""


def each_value(*choices: Iterable[Any], shift: int = 0) -> list[tuple[Any, ...]]:
    """Return as many rows as the longest choice has values; each value occurs.

    :param shift: by so many values each choice after the first begins later, for other rows of the same choices.
    """
    lists = [list(choice) for choice in choices]
    return [
        tuple(values[(row + (shift if place else 0)) % len(values)] for place, values in enumerate(lists))
        for row in range(max(map(len, lists)))
    ]


def each_pair(*choices: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Return rows in which each two values of two choices meet, as few as a greedy search finds; always the same."""
    rows = list(itertools.product(*choices))
    pairs = {row: set(itertools.combinations(enumerate(row), 2)) for row in rows}
    missing = set().union(*pairs.values())
    found = []
    while missing:
        found.append(max(rows, key=lambda row: len(pairs[row] & missing)))
        missing -= pairs[found[-1]]
    return found
