"""Figures about all resumable streams of a process, for operators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .session import Budget

BUDGET = Budget()
"""Of all streams of this process, at both ends."""


class Counters:
    """Counts of losses and of what was done about them; written in the I/O thread, read from any. Plain data."""

    __slots__ = ("attempts", "losses", "refused", "resumes")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin with 0 again; for tests."""
        self.attempts = 0
        """Attempts to get another carrier."""
        self.resumes = 0
        """Streams that have gone on over another carrier."""
        self.losses = 0
        """Streams that could not go on."""
        self.refused = 0
        """Tokens that no session of the same identity has."""


NEAR, FAR = Counters(), Counters()
"""Those of near ends, and of far ends."""


class ResumeFigures(NamedTuple):
    """Figures about resumable streams, at both ends."""

    attempts: int
    """Attempts to get another connection for a stream."""
    resumes: int
    """Streams that have gone on over another connection, each time."""
    losses: int
    """Streams that ended because they could not go on."""
    refused: int
    """Attempts of others to go on with a stream that is unknown here, or belongs to another identity."""
    held: int
    """Bytes that are kept until the other end acknowledges them."""


def resume_figures() -> ResumeFigures:
    """Return the figures of this process. From any thread."""
    return ResumeFigures(NEAR.attempts, NEAR.resumes + FAR.resumes, NEAR.losses + FAR.losses, FAR.refused, BUDGET.held)


def added(parts: Iterable[ResumeFigures]) -> ResumeFigures:
    """Return the sum of the figures of several processes, one at least."""
    return ResumeFigures(*map(sum, zip(*parts, strict=True)))
