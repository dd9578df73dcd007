"""The figures of a tunnel that another one continues: a reload has put it in the other one's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ..engine.records import ConnectionRecord, Metrics


class HasFigures(Protocol):
    """A tunnel that counts."""

    def metrics(self) -> Metrics:
        """Return all counters."""

    def recent(self) -> Sequence[ConnectionRecord]:
        """Return the last connections that ended."""


class _Parts(NamedTuple):
    """The parts of the figures: replaced as a whole, as any thread may read them."""

    metrics: Callable[[], Metrics]
    recent: Callable[[], Sequence[ConnectionRecord]]
    is_over: bool
    before: ContinuedFigures | None


class ContinuedFigures:
    """The figures of a tunnel until another one took its place; its open connections may still add to them.

    :param tunnel: the tunnel.
    :param before: the figures that it has continued itself; ``None`` if there are none.
    """

    def __init__(self, tunnel: HasFigures, before: ContinuedFigures | None) -> None:
        self._parts = _Parts(tunnel.metrics, tunnel.recent, False, before)

    def end(self) -> None:
        """Keep the last figures, and forget the tunnel, which has ended."""
        parts = self._parts
        metrics, recent = parts.metrics(), parts.recent()
        self._parts = _Parts(lambda: metrics, lambda: recent, True, parts.before)

    def metrics(self, own: Metrics) -> Metrics:
        """Return the sums of these counters and those of the other tunnel."""
        from ..spawning.totals import add_metrics

        parts = self._folded()
        found = add_metrics([parts.metrics(), own])
        return found if parts.before is None else parts.before.metrics(found)

    def recent(self, own: Sequence[ConnectionRecord]) -> Sequence[ConnectionRecord]:
        """Return the last connections that ended, of these and those of the other tunnel."""
        from ..spawning.totals import last_of

        parts = self._folded()
        found = last_of([parts.recent(), own])
        return found if parts.before is None else parts.before.recent(found)

    def _folded(self) -> _Parts:
        """Return the parts, as one where nothing adds to them any more: there may be a reload each minute."""
        parts = self._parts
        if parts.is_over and parts.before is not None and parts.before.is_over:
            metrics, recent = parts.before.metrics(parts.metrics()), parts.before.recent(parts.recent())
            parts = self._parts = _Parts(lambda: metrics, lambda: recent, True, None)
        return parts

    @property
    def is_over(self) -> bool:
        """True if nothing adds to the figures any more."""
        parts = self._folded()
        return parts.is_over and parts.before is None
