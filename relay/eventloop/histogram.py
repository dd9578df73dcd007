"""Durations, counted by size."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

CONNECT_TIMES = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0, 120.0)
"""The bounds of durations of a connect, seconds."""


class Histogram(NamedTuple):
    """Numbers of seconds, counted by size."""

    counts: tuple[int, ...]
    """How many were at most the bound of the same index, and above the one before; the last are above all bounds."""
    total: float
    """Their sum."""


class Durations:
    """Numbers of seconds, counted by size. One thread at a time adds; any thread reads.

    :param bounds: of the sizes, in ascending order.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.counted = Histogram((0,) * (len(bounds) + 1), 0.0)
        """The counts; replaced as a whole."""
        self._bounds = bounds

    def add(self, values: list[float]) -> None:
        """Count the values, which are sorted in place."""
        values.sort()
        counts = [*self.counted.counts]
        below = 0
        for index, bound in enumerate(self._bounds):
            until = bisect.bisect_right(values, bound, below)
            counts[index] += until - below
            below = until
        counts[-1] += len(values) - below
        self.counted = Histogram(tuple(counts), self.counted.total + sum(values))
