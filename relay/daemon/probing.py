"""Probes: a stream through every hop to the target of a tunnel, opened now and then, as a client would open it.

One thread waits for the next probe that is due. Dialing may block, so probes run on threads of their own: as many as
there are probes under way, but at most ``_MOST``; further probes queue. Each probe has a deadline, and a route of a
tunnel has at most one at a time. Tunnels whose last probe failed use at most ``_MOST_FAILING`` threads: however long
their probes take, those of the other tunnels go on. Without a probe there is no thread.

What one that fails says of a target is the same as for one of several targets: see
:mod:`~relay.targets.health`. A probe that is only missed changes nothing, and is repeated soon.

The cost of a change or a probe of one tunnel does not depend on the number of tunnels.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..addresses.printable import shown
from ..streams.dialer import introduced
from ..streams.promise import Cancellation
from ..targets.health import Action, Event, Health, HealthState, failure
from ..targets.probe import answered
from .status import ProbeStatus

logger = logging.getLogger("relay.operations")

DEFAULT_INTERVAL = 30.0  # seconds
_SPREAD = 0.1  # of the interval by which probes of many tunnels are spread
_FIRST = 1.0  # seconds within which the first probe of a tunnel begins
_MOST = 128  # probes at a time
_MOST_FAILING = _MOST // 2  # of them for tunnels whose last probe failed
_END = 2.0  # seconds to wait for probes that were given up


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """A tunnel to probe.

    :param name: its name.
    :param probe: ``connect``, ``banner`` or ``http://PATH``; see :func:`~relay.targets.probe.answered`.
    :param interval: seconds between two probes.
    :param timeout: seconds for one probe at most.
    :param dial: its factory, called with the keywords ``deadline`` and ``cancel``; a
        :class:`~relay.streams.dialer.Dialer`, unless the probe is ``connect`` without a header.
    :param host: the target, for the header of HTTP.
    :param header: of the PROXY protocol, with which the stream begins; empty for none.
    """

    name: str
    probe: str
    interval: float
    timeout: float
    dial: Any
    host: str = "localhost"
    header: bytes = b""

    @property
    def kind(self) -> str:
        """``connect``, ``banner`` or ``http``."""
        return self.probe.partition(":")[0]


class _Record:
    """The probes of one tunnel with one route. It waits for its time, is in a queue, or has a thread.

    Another route or probe has another record: the outcome of a record that is not the tunnel's any more does not count.
    """

    def __init__(self, target: ProbeTarget, due: float, status: ProbeStatus | None = None) -> None:
        self.target = target
        self.due = due  # monotonic seconds
        self.status = status or ProbeStatus(target.kind, target.interval)
        self.health = Health(time.monotonic())

    @property
    def is_failing(self) -> bool:
        """True if the last probe failed."""
        return bool(self.status.problem)


class _Queue:
    """The records whose time has come; first come, first served, but for the bound on those whose last probe failed."""

    def __init__(self) -> None:
        self._queues: tuple[deque[_Record], deque[_Record]] = (deque(), deque())  # failing ones are the second
        self._running = [0, 0]

    @property
    def running(self) -> int:
        """The number of records that were taken, and are not done."""
        return sum(self._running)

    def append(self, record: _Record) -> None:
        """Add a record."""
        self._queues[record.is_failing].append(record)

    def take(self) -> _Record | None:
        """Return the next record that may be probed now; :meth:`done` must follow."""
        if self.running >= _MOST:
            return None
        among = self._queues if self._running[True] < _MOST_FAILING else self._queues[:1]
        queue = min(filter(None, among), key=lambda queue: queue[0].due, default=None)
        if queue is None:
            return None
        record = queue.popleft()
        self._running[record.is_failing] += 1
        return record

    def done(self, record: _Record) -> None:
        """Take the end of a probe, before its outcome is noted."""
        self._running[record.is_failing] -= 1

    def put_back(self, record: _Record) -> None:
        """Add a record again that was taken, as the first one."""
        self.done(record)
        self._queues[record.is_failing].appendleft(record)


class Prober:
    """The probes of a program. Every method may be called from any thread.

    :param target_of: returns what to probe for the name of a tunnel; ``None`` if it is not open, or has no probe.
    """

    def __init__(self, target_of: Callable[[str], ProbeTarget | None]) -> None:
        self._target_of = target_of
        self._changed = threading.Condition()  # for all that follow
        self._names: set[str] = set()  # the tunnels to look at again
        self._records: dict[str, _Record] = {}
        self._waiting: list[tuple[float, int, _Record]] = []  # a heap: when each is due, a number for the order, it
        self._numbers = itertools.count()
        self._queue = _Queue()
        self._threads: set[threading.Thread] = set()
        self._cancel: Cancellation | None = None
        self._is_closed = False

    def wake(self, names: Iterable[str]) -> None:
        """Look at tunnels again: they have opened, have changed or are gone.

        :param names: their names.
        """
        with self._changed:
            if self._is_closed:
                return
            self._names.update(names)
            # The descriptors and the thread are made for the first tunnel that has a probe; most programs have none.
            if self._cancel is None:
                if all(self._target_of(name) is None for name in self._names):
                    self._names.clear()
                    return
                self._cancel = Cancellation()
                try:
                    self._start(self._run, "relay-probes")
                except RuntimeError as error:  # the system has no thread left
                    self._cancel = None
                    logger.error("no tunnel is probed before the next one changes: %s", error)
            self._changed.notify_all()

    def status(self, name: str) -> ProbeStatus | None:
        """Return the last probe of a tunnel; ``None`` if it has none."""
        record = self._records.get(name)
        return record.status if record is not None else None

    def close(self) -> None:
        """Give up the probes under way, and end. Idempotent."""
        with self._changed:
            self._is_closed = True
            threads, cancel = tuple(self._threads), self._cancel
            self._changed.notify_all()
        if cancel is not None:
            cancel.set()
            deadline = time.monotonic() + _END
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            # One that is still in a call looks at the token later: a descriptor that is closed under it may be another
            # file.
            if not any(thread.is_alive() for thread in threads):
                cancel.close()

    def _start(self, work: Callable[[], None], name: str) -> None:
        """Start a thread; with the lock held.

        :raises RuntimeError: if the system has no thread left.
        """

        def run() -> None:
            try:
                work()
            finally:
                with self._changed:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        # After the start, which may fail; the thread cannot have taken itself out yet, because that needs the lock held
        # here.
        self._threads.add(thread)

    def _run(self) -> None:
        with self._changed:
            while not self._is_closed:
                names, self._names = self._names, set()
                for name in names:
                    self._look(name)
                while self._waiting and self._waiting[0][0] <= time.monotonic():
                    record = heapq.heappop(self._waiting)[-1]
                    if self._is_current(record) and self._look(record.target.name) is record:
                        self._queue.append(record)
                self._staff()
                if len(self._waiting) > 2 * len(self._records):  # most are of tunnels that have changed
                    self._waiting = [entry for entry in self._waiting if self._is_current(entry[-1])]
                    heapq.heapify(self._waiting)
                if not self._names:
                    self._changed.wait(max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None)

    def _is_current(self, record: _Record) -> bool:
        return self._records.get(record.target.name) is record

    def _look(self, name: str) -> _Record | None:
        """Take the target of a tunnel as it is now, with the lock held; one whose probe has changed begins anew.

        One that has another route is probed at once. Its last result counts until then.
        """
        target, record = self._target_of(name), self._records.get(name)
        if target is None:
            self._records.pop(name, None)
            return None
        if record is None or (record.target.probe, record.target.interval) != (target.probe, target.interval):
            # Hundreds of tunnels open at the same moment: without the spread all their probes would come together.
            first = random.uniform(0, min(_FIRST, target.interval * _SPREAD))  # noqa: S311  (no secret)
            record = self._records[name] = _Record(target, time.monotonic() + first)
            self._wait_for(record)
        # A new record, so that the outcome of a probe over the old route, which is still under way, does not count.
        elif (record.target.dial, record.target.header) != (target.dial, target.header):
            record = self._records[name] = _Record(target, time.monotonic(), record.status)
            self._wait_for(record)
        else:
            record.target = target
        return record

    def _wait_for(self, record: _Record) -> None:
        heapq.heappush(self._waiting, (record.due, next(self._numbers), record))

    # -- the threads of the probes ------------------------------------------------------------------------------------

    def _staff(self) -> None:
        """Start threads for the queue; with the lock held."""
        while (record := self._next()) is not None:
            try:
                self._start(functools.partial(self._probe, record), "relay-probe")
            except RuntimeError as error:  # the system has no thread left
                if self._queue.running > 1:  # the threads of the others take it in turn
                    self._queue.put_back(record)
                    return
                # No thread runs that could take it from the queue, so it must get its next time here.
                self._end(record, time.monotonic(), Event.PROBE_MISSED, str(error))

    def _next(self) -> _Record | None:
        """Take a record from the queue that is still that of its tunnel; with the lock held."""
        while not self._is_closed and (record := self._queue.take()) is not None:
            if self._is_current(record):
                return record
            self._queue.done(record)
        return None

    def _probe(self, record: _Record | None) -> None:
        """Probe a tunnel, and then those of the queue."""
        assert self._cancel is not None
        while record is not None:
            target, began = record.target, time.monotonic()
            event, problem = Event.PROBE_PASSED, ""
            try:
                _dial(target, began + target.timeout, self._cancel)
            except (OSError, ValueError, TypeError) as error:
                event, problem = failure(error), str(error)
            except Exception as error:
                logger.exception("%s: the probe failed", target.name)
                event, problem = Event.PROBE_MISSED, type(error).__name__
            with self._changed:
                self._end(record, began, event, problem)
                # In the same lock as the outcome: between the two another thread could be started for what this one
                # takes.
                record = self._next()

    def _end(self, record: _Record, began: float, event: Event, problem: str) -> None:
        """Note the outcome, unless the tunnel has gone or has another route; with the lock held."""
        self._queue.done(record)
        target = record.target
        if self._is_closed or self._look(target.name) is not record:
            self._changed.notify_all()
            return
        before, now, health = record.status, time.monotonic(), record.health
        if health.state is HealthState.DOWN:
            health.handle(Event.DUE, began)
        action = health.handle(event, now, seconds=None if problem else now - began, problem=problem)
        is_missed = bool(problem) and health.state is HealthState.UP
        verdict = before.problem if is_missed else shown(problem)
        record.status = ProbeStatus(target.kind, target.interval, time.time(), now - began, verdict)
        record.due = began + target.interval * random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311  (no secret)
        if action & Action.WAIT:
            record.due = now + min(health.delay, target.interval)
        self._wait_for(record)
        if self._waiting[0][-1] is record:  # it is the next one
            self._changed.notify_all()
        if is_missed:
            logger.info("%s: a probe failed: %s; another one follows", target.name, shown(problem))
        elif problem and not before.problem:
            logger.warning("%s: probe: %s", target.name, shown(problem))
        elif before.problem and not problem:
            logger.warning("%s: the probe succeeds again", target.name)


def _dial(target: ProbeTarget, deadline: float, cancel: Cancellation) -> None:
    """Open a stream, wait for what the probe asks for, and close it.

    :raises OSError: if the stream cannot be opened, or the target does not answer as it should.
    """
    dial = introduced(target.dial, target.header) if target.header else target.dial
    if target.kind != "connect":
        dial = answered(dial, target.probe, target.host)
    dial(deadline=deadline, cancel=cancel).close()
