"""Figures of a group of tunnels, beside those of its tunnels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ..engine.records import Stats

__all__ = ["ReloadFigures", "total"]


class ReloadFigures(NamedTuple):
    """The figures of the reloads of a group."""

    succeeded: int = 0
    """Reloads that were done."""
    failed: int = 0
    """Reloads that have changed nothing."""
    was_successful: bool = True
    """Whether the last one was done; true before the first one."""
    last_success: float = 0.0
    """The time of the last one that was done, or of the start: seconds since 1970, in UTC; 0 if it is not known."""


def total(all_stats: Iterable[Stats]) -> Stats:
    """Add up the statistics of several tunnels."""
    failed: Counter[str] = Counter()
    accepted = active = received = sent = hits = misses = 0
    for stats in all_stats:
        accepted, active = accepted + stats.accepted, active + stats.active
        received, sent = received + stats.received, sent + stats.sent
        hits, misses = hits + stats.warm_hits, misses + stats.warm_misses
        failed.update(stats.failed)
    return Stats(accepted, active, received, sent, dict(failed), hits, misses)
