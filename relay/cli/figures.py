"""Figures of a group of tunnels, beside those of its tunnels."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ReloadFigures"]


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
