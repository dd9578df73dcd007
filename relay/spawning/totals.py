"""The figures of a tunnel that several workers relay: sums, in which those that have died stay."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..engine.records import ConnectionRecord, Metrics, WarmFigures
from ..engine.statistics import RECENT, Statistics
from ..eventloop.histogram import Histogram

_WORKER_LOST = "worker_lost"
_NONE = Statistics("", None, None).metrics(())


class Totals:
    """The figures that the workers of one tunnel have reported. Callers hold the lock of the tunnel.

    A worker that is killed takes with it what it has counted since it was asked last. So its last answer is kept, and
    what was returned once stays in the sums: a counter never decreases. The number of accepted connections is exact,
    as it is in shared memory, and so is the number of those that are lost with a worker.

    :param workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        self._answers: list[Metrics | None] = [None] * workers
        self._recent_of: list[Sequence[ConnectionRecord]] = [()] * workers
        self._numbers = [[0.0, 0.0] for _ in range(workers)]  # of the last answers
        self._ended = _NONE
        self._recent: list[ConnectionRecord] = []

    def answered(self, worker: int, metrics: Metrics, number: float = math.inf) -> None:
        """Take the counters of a worker.

        :param number: of the question. Several threads may ask at a time; an answer that is older than the last one
            changes nothing. The default is that of the last answer of all.
        """
        if self._is_newer(worker, 0, number):
            self._answers[worker] = metrics

    def answered_recent(self, worker: int, records: Sequence[ConnectionRecord], number: float = math.inf) -> None:
        """Take the last connections of a worker that ended; ``number`` is as above."""
        if self._is_newer(worker, 1, number):
            self._recent_of[worker] = records

    def _is_newer(self, worker: int, kind: int, number: float) -> bool:
        is_newer = number >= self._numbers[worker][kind]
        self._numbers[worker][kind] = max(number, self._numbers[worker][kind])
        return is_newer

    def ended(self, worker: int, lost: int = 0) -> None:
        """Add the last answers of a worker that is gone to what stays.

        :param lost: the connections that ended with it.
        """
        # The successor's answers have higher numbers in any case; this also ends the infinity of a last answer.
        self._numbers[worker] = [0.0, 0.0]
        metrics, self._answers[worker] = self._answers[worker] or _NONE, None
        records, self._recent_of[worker] = self._recent_of[worker], ()
        self._ended = add_metrics([self._ended, _without_gauges(metrics)])
        if lost:
            self._ended = self._ended._replace(ended=_sum([self._ended.ended, {_WORKER_LOST: lost}]))
        self._recent = last_of([self._recent, records])

    def metrics(self, accepted: int) -> Metrics:
        """Return the sums.

        :param accepted: the connections that all workers have ever accepted.
        """
        parts = [answer for answer in self._answers if answer is not None]
        if self._ended is not _NONE or not parts:
            parts.append(self._ended)
        return add_metrics(parts)._replace(accepted=accepted)

    def recent(self) -> list[ConnectionRecord]:
        """Return the last connections that ended, oldest first."""
        return last_of([self._recent, *self._recent_of])


def _without_gauges(metrics: Metrics) -> Metrics:
    # What is a present number, as of open connections, is gone with the process; only counters go on.
    warm = metrics.warm._replace(ready=0) if metrics.warm is not None else None
    return metrics._replace(states=dict.fromkeys(metrics.states, 0), warm=warm, bans={})


def last_of(lists: Iterable[Sequence[ConnectionRecord]]) -> list[ConnectionRecord]:
    """Return the last records of several lists, in the order in which the connections ended."""
    records = [record for records in lists for record in records]
    records.sort(key=lambda record: record.started + record.age)
    return records[-RECENT:]


def add_metrics(parts: Sequence[Metrics]) -> Metrics:
    """Return the sums of counters.

    :param parts: at least one.
    """
    if len(parts) == 1:
        return parts[0]
    return Metrics(
        accepted=sum(part.accepted for part in parts),
        states=_sum(part.states for part in parts),
        ended=_sum(part.ended for part in parts),
        received=sum(part.received for part in parts),
        sent=sum(part.sent for part in parts),
        spliced_received=sum(part.spliced_received for part in parts),
        spliced_sent=sum(part.spliced_sent for part in parts),
        connect_times=_add(part.connect_times for part in parts),
        ages=_add(part.ages for part in parts),
        denied=_sum(part.denied for part in parts),
        accept_errors=_sum(part.accept_errors for part in parts),
        hop_times={
            label: _add(part.hop_times[label] for part in parts if label in part.hop_times)
            for label in dict.fromkeys(label for part in parts for label in part.hop_times)
        },
        warm=_add_warm([part.warm for part in parts if part.warm is not None]),
        bans=_sum(part.bans for part in parts),
        throttled=sum(part.throttled for part in parts),
    )


def _add_warm(figures: Sequence[WarmFigures]) -> WarmFigures | None:
    return WarmFigures(*map(sum, zip(*figures, strict=True))) if figures else None


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)  # keeps the words whose count is 0
    return dict(total)


def _add(histograms: Iterable[Histogram]) -> Histogram:
    """Return the sum of histograms with the same bounds."""
    all_of_them = list(histograms)
    counts = tuple(map(sum, zip(*(each.counts for each in all_of_them), strict=True)))
    return Histogram(counts, sum(each.total for each in all_of_them))
