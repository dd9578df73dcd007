"""The connections of a thread that are bulk transfers now; the loop handles them in turns if there are many."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..eventloop.loop import Loop, Timer

if TYPE_CHECKING:  # parts of one machine name each other
    from .flow_pair import FlowPair

FEW = 4  # bulk transfers that delay the others little: they save the second look for events in each turn of the loop
QUIET = 1.0  # seconds without a byte after which a connection is none any more; a sender of a thousand rests for less


class BulkPairs:
    """The bulk transfers of one relay thread. Belongs to it.

    :param loop: the thread's loop.
    """

    __slots__ = ("_loop", "_pairs", "_timer")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._pairs: set[FlowPair] = set()
        # While they are more than a few. It refers to this, and only the collector would free both.
        self._timer: Timer | None = None

    def add(self, pair: FlowPair, now: float) -> None:
        """Take one that has become a bulk transfer."""
        pairs = self._pairs
        pairs.add(pair)
        if len(pairs) <= FEW:
            return
        # At the first one beyond the few, these move, too: else they would have more turns than the others.
        for one in tuple(pairs) if len(pairs) == FEW + 1 else (pair,):
            one.move(True)
        if self._timer is None and self._loop.bulk:
            self._timer = Timer(self._loop.timers, self._look)
            self._timer.start(now + QUIET, now)

    def discard(self, pair: FlowPair) -> None:
        """Forget one that is none any more, or has ended. The last few stay where they are: no request waits long."""
        self._pairs.discard(pair)
        if self._timer is not None and len(self._pairs) <= FEW:
            self._timer.stop()
            self._timer = None

    def _look(self, now: float) -> None:
        """Find those that have gone quiet after a large read: their next requests are not to wait."""
        # One that waits for its turn has been quiet, too, but is ready.
        ready = self._loop.ready_bulk()
        for pair in tuple(self._pairs):
            flows = pair.upstream, pair.downstream
            if all(flow.last < now - QUIET and flow.descriptor not in ready for flow in flows):
                pair.set_bulk(False, now)
        if self._timer is not None:
            self._timer.start(now + QUIET, now)
