"""The figures of a tunnel, its last connections, and the log line of each connection that ends.

Most figures of a connection are added up only when they are read, or when :data:`_MOST_WAITING` connections have ended:
adding those of many at once costs a connection less, and a tunnel that is read each second seldom adds them itself.
Until then the connections wait, because the columns of many are added up faster.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Iterable

from ..eventloop.histogram import CONNECT_TIMES, Durations
from ..eventloop.sockets import format_address
from .connection import Connection
from .observer import Observer
from .outlets import Outlets
from .records import DIRECT, REASONS, ConnectionRecord, Metrics, WarmFigures

logger = logging.getLogger("relay")

AGES = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)
"""The bounds of :attr:`~relay.engine.records.Metrics.ages`, seconds."""

RECENT = 100
"""Ended connections that are remembered."""

_MOST_WAITING = 100  # ended connections whose figures are not added up yet
_RULES = ("access-list", "login")
_MOST_RULES = 100  # that have a count of their own: each is a label of a metric, and a list may have thousands
_OTHER = "other"
_STATES = ("connecting", "open", "half-closed")
_NONE = Outlets()


class Statistics:
    """The figures of one tunnel: plain data. Written by the relay thread, read by any.

    :param name: of the tunnel, for the log.
    :param lifetime: the limit of that name, for the log.
    :param observer: gets the record of each connection that has ended; ``None`` for none.
    :param outlets: those of the process; their ``on_ended`` gets it, too.
    """

    def __init__(self, name: str, lifetime: float | None, observer: Observer | None, outlets: Outlets = _NONE) -> None:
        self.accepted = 0
        self.accept_errors: collections.Counter[str] = collections.Counter()
        """Written by the thread that accepts."""
        self._name = name
        self.lifetime = lifetime
        self._observer = observer
        self._outlets = outlets
        self._has_warned = False
        self._recent: collections.deque[Connection] = collections.deque(maxlen=RECENT)  # whose figures are added up
        self._waiting: list[Connection] = []  # that have ended since
        self._lock = threading.Lock()  # held while figures are added up; the relay thread never waits for it
        self._received = self._sent = self._spliced_received = self._spliced_sent = 0
        self._ended: collections.Counter[str] = collections.Counter(dict.fromkeys(REASONS, 0))
        self._denied = collections.Counter(dict.fromkeys(_RULES, 0))
        self._ages = Durations(AGES)
        self._connect_times = Durations(CONNECT_TIMES)
        self._hop_times: dict[str, Durations] = {}  # of the steps that there were
        self._bytes = (0, 0, 0, 0)  # that were returned last
        self._idle: Metrics | None = None  # those that were returned last, if there was no connection then

    def add(self, connection: Connection) -> None:
        """Count a connection that has ended."""
        record = None
        is_logged = logger.isEnabledFor(logging.INFO)
        on_ended = self._outlets.on_ended  # once: another thread may take it away
        if is_logged or self._observer is not None or on_ended is not None:
            record = connection.record(connection.summary.finished)
            if is_logged:  # first: a program that sees the end finds its line
                logger.info("%s: %s", self._name, _in_one_line(record), extra={"connection": record})
        # The connection and not its record: most records are never asked for, and to make one takes time.
        waiting = self._waiting
        waiting.append(connection)
        # Where a reader holds the lock, that one adds up, and this thread relays.
        if len(waiting) >= _MOST_WAITING and self._lock.acquire(blocking=False):
            try:
                self._add_up()
            finally:
                self._lock.release()
        if connection.summary.reason == "lifetime" and not self._has_warned:
            self._warn_of_lifetime(connection)
        if record is not None:
            if self._observer is not None:
                self._observer.put(record)
            if on_ended is not None:
                on_ended(self._name, record)

    def recent(self) -> list[ConnectionRecord]:
        """Return the records of the last 100 connections that ended, oldest first."""
        with self._lock:
            self._add_up()
            recent = list(self._recent)
        return [connection.record(connection.summary.finished) for connection in recent]

    def metrics(self, connections: Iterable[Connection], warm: WarmFigures | None = None) -> Metrics:
        """Return all counters.

        :param connections: the open ones; it is read after the figures of those that have ended. So one that ends
            meanwhile is counted too late, never twice, and a counter that was returned once never gets less.
        :param warm: those of the warm streams.
        """
        with self._lock:
            if (idle := self._idle) is not None and not list(connections) and self._is_as(idle):
                return idle if idle.warm == warm else idle._replace(warm=warm)
            self._add_up()
            totals = [self._received, self._sent, self._spliced_received, self._spliced_sent]
            states = dict.fromkeys(_STATES, 0)
            living = list(connections)
            for connection in living:
                state = connection.state.reported
                if state in states:
                    states[state] += 1
                for index, count in enumerate(connection.bytes_moved()):
                    totals[index] += count
            # A connection that ends between the two sums may be in neither: a counter that was returned once must not
            # get less.
            received, sent, spliced_received, spliced_sent = map(max, self._bytes, totals)
            self._bytes = received, sent, spliced_received, spliced_sent
            metrics = Metrics(
                self.accepted,
                states,
                dict(self._ended),
                *self._bytes,
                connect_times=self._connect_times.counted,
                ages=self._ages.counted,
                denied=dict(self._denied),
                accept_errors=dict(self.accept_errors),
                hop_times={label: times.counted for label, times in self._hop_times.items()},
                warm=warm,
            )
            self._idle = None if living else metrics
            return metrics

    def _is_as(self, idle: Metrics) -> bool:
        """Return whether nothing was counted since then; to add up what has ended discards ``idle``."""
        return not self._waiting and self.accepted == idle.accepted and dict(self.accept_errors) == idle.accept_errors

    def after_fork(self) -> None:
        """Forget the lock, in a forked child: the thread that held it is not there."""
        self._lock = threading.Lock()

    def _add_up(self) -> None:
        """Add up what has ended. The lock is held."""
        batch = self._waiting[:]
        if not batch:
            return
        self._idle = None
        del self._waiting[: len(batch)]  # others may have been appended meanwhile; these wait for the next time
        self._recent.extend(batch)
        ended = [connection.summary for connection in batch]
        self._received += sum([one.received for one in ended])
        self._sent += sum([one.sent for one in ended])
        self._ended.update([one.reason or "" for one in ended])
        self._ages.add([one.finished - one.started for one in ended])
        direct, by_hops = [], []
        for one in ended:
            if one.path is not None:
                by_hops.append(one)
            elif one.opened:
                direct.append(one.opened - (one.dialed or one.started))
            if one.rule is not None:
                known = one.rule in self._denied or len(self._denied) < _MOST_RULES
                self._denied[one.rule if known else _OTHER] += 1
            if one.spliced is not None:
                self._spliced_received += one.spliced[0]
                self._spliced_sent += one.spliced[1]
        through = [seconds for one in by_hops if (seconds := one.connect_time) is not None]
        self._connect_times.add(direct + through)
        if direct:
            self._hop_times.setdefault(DIRECT, Durations(CONNECT_TIMES)).add(direct)
        parts = [part for one in by_hops for part in one.hop_times()]
        for label in {label for label, _ in parts}:
            times = self._hop_times.setdefault(label, Durations(CONNECT_TIMES))
            times.add([seconds for one, seconds in parts if one == label])

    def _warn_of_lifetime(self, connection: Connection) -> None:
        self._has_warned = True
        text = (
            "%s: timeout: reset the connection of %s after %g s, the longest that one may last; "
            "timeout=None is no limit (logged once for a tunnel)"
        )
        logger.warning(text, self._name, format_address(connection.summary.peer) or "a local client", self.lifetime)


def _in_one_line(record: ConnectionRecord) -> str:
    return (
        f"{record.client} -> {record.target or 'nowhere'}: "
        f"{record.reason}{f' ({record.rule})' if record.rule else ''} after {record.age:.3f} s, "
        f"{record.received} B received, {record.sent} B sent, {record.engine}{', warm' if record.warm else ''}"
    )
