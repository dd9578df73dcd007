"""The targets of a group: their health, the order in which they are tried, and the probes of those that are down."""

from __future__ import annotations

import enum
import errno
import functools
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..addresses.printable import printable
from ..eventloop.background import IOThread
from ..eventloop.loop import Timer
from ..streams.dialer import Dialer, introduced
from ..streams.promise import Abort, OnResult
from ..streams.stream import Stream
from .health import Action, Event, Health, HealthState, failure
from .probe import ProbeSchedule, answered

logger = logging.getLogger("relay")

Probe = Callable[[Dialer, float, OnResult], Abort]

# What this machine lacks says nothing about a target. Ports lack for one target only, so that the next one is tried.
LOCAL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN)
NO_PORT = errno.EADDRNOTAVAIL

_PROBE_TIMEOUT = 10.0  # seconds for a connect that is a probe
_SPREAD = 0.1  # of the interval by which the probes of many targets are spread
_FIRST = 1.0  # seconds within which the first probe of a target begins
_MOST_SHORT = 3  # attempts in a row that may have had hardly any time
_MEASURED = 30.0  # seconds between two connects that measure a target
_LONGEST = 500  # characters of an error in the log
_FAILING = (HealthState.DOWN.value, HealthState.PROBING.value)
_PROBED = (Event.PROBE_PASSED, Event.PROBE_MISSED, Event.PROBE_FAILED)


class Selection(enum.Enum):
    """The order in which the targets are tried that are up."""

    FIRST = "first"
    """The first one of the list."""
    SPREAD = "spread"
    """The one with the fewest streams."""
    FASTEST = "fastest"
    """The one whose connects, or probes of a :class:`ProbeSchedule`, take the least time on average."""


_NOT_TRIED = ("up", "closed")  # the states of a dialer's hops that say nothing against it


class TargetState(NamedTuple):
    """The state of one target."""

    target: str
    """Its name."""
    state: str
    """``up``, ``down``, ``probing`` or ``disabled``."""
    since: float
    """Seconds for which it has been in this state; ``down`` and ``probing`` count as one."""
    active: int
    """Streams that are open, or about to be."""
    latency: float | None
    """Seconds that a connect takes, or the probe, on average; ``None`` if none has succeeded yet."""
    failures: int
    """Connects and probes that failed."""
    problem: str
    """The last error, if it is not up."""


class ProbeOutcome(NamedTuple):
    """The outcome of a probe."""

    finished: float | None
    """When it ended, in seconds since 1970; ``None`` if no probe has ended yet."""
    seconds: float = 0.0
    """Seconds that it took."""
    problem: str = ""
    """Why it failed; empty if it did not."""


class _Member:
    """One target. The group's lock guards it.

    :param name: of the target.
    :param dialer: makes its streams.
    :param now: monotonic seconds.
    """

    def __init__(self, name: str, dialer: Dialer, now: float) -> None:
        self.name = name
        self.dialer = dialer
        self.health = Health(now)
        self.active = 0
        self.short = 0  # attempts in a row without an answer that had hardly any time
        self.timer: Timer | None = None  # until the next probe
        self.is_probed = False  # whether a probe is under way
        self.begun = 0.0  # when the last probe began, monotonic seconds
        self.outcome: ProbeOutcome | None = None  # of the last probe
        self.give_up: Abort | None = None  # of the probe under way
        self.probe = 0  # the number of the probe under way, so that the outcome of an earlier one does not count


def _is_away(dialer: Dialer) -> bool:
    """Return whether a hop before a target is known to be down: a client would wait for it in vain."""
    return dialer.state not in _NOT_TRIED and dialer.last_error is not None


class Members:
    """The targets of a group and its copies: their health, and the probes of those that are down.

    The states of a target are in :mod:`~relay.targets.health`.

    :param dialers: the names of the targets, and what makes their streams.
    :param selection: the order in which they are tried.
    :param probe: begins to test a target: called with its dialer, the deadline and a callback for a stream, which is
        closed then, or an error.
    :param name: of the tunnel, for the log.
    """

    def __init__(self, dialers: Sequence[tuple[str, Dialer]], selection: Selection, probe: Probe, name: str) -> None:
        now = time.monotonic()
        self.members = [_Member(target, dialer, now) for target, dialer in dialers]
        self.selection = selection
        self.header = b""
        """Of the PROXY protocol: each probe begins with it. Set from any thread."""
        self._probe = probe
        self._name = name
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._schedule: ProbeSchedule | None = None  # of the probes of targets that are up
        self._earlier: ProbeOutcome | None = None  # of the group whose place this one takes
        self._used = -math.inf  # when a stream was asked for, if the targets are compared
        self._measurement = ProbeSchedule("connect", _MEASURED, _PROBE_TIMEOUT, self._is_used)
        self._io_thread: IOThread | None = None  # while a target waits for a probe
        self._is_closed = False

    def chosen(self, tried: Sequence[int]) -> int | None:
        """Return the number of the target for the next attempt, and count a stream there; ``None`` if none is up."""
        with self._lock:
            found = [
                number
                for number, member in enumerate(self.members)
                if number not in tried and member.health.state is HealthState.UP
            ]
            if not found:
                return None
            number = min(found, key=self._rank)
            # Counted in the same step, or two clients of one moment would both take the target with the fewest streams.
            self.members[number].active += 1
            return number

    def _rank(self, number: int) -> tuple[bool, float, float]:
        member = self.members[number]
        # First of all: a target behind a hop that is down counts as up, since no connect to it has failed.
        is_away = _is_away(member.dialer)
        if self.selection is Selection.SPREAD:
            return is_away, member.active, number
        if self.selection is Selection.FASTEST:
            return is_away, (math.inf if member.health.latency is None else member.health.latency), number
        return is_away, 0.0, number

    def left(self, tried: Sequence[int]) -> int:
        """Return how many targets are up that were not tried."""
        with self._lock:
            up = [number for number, member in enumerate(self.members) if member.health.state is HealthState.UP]
        return len([number for number in up if number not in tried])

    def is_up(self, number: int) -> bool:
        """Return whether a target gets streams. From any thread."""
        return self.members[number].health.state is HealthState.UP

    def probe_by(self, dialers: Sequence[Dialer]) -> None:
        """Probe by other dialers of the same targets from now on."""
        for member, dialer in zip(self.members, dialers, strict=True):
            member.dialer = dialer

    def ended(self, number: int) -> None:
        """Count the end of a stream, or of an attempt that gave none. From any thread."""
        with self._lock:
            self.members[number].active -= 1

    def succeeded(self, number: int, seconds: float) -> None:
        """Take account of a connect for a client."""
        self._handle(number, Event.SUCCEEDED, seconds=seconds)

    def failed(self, number: int, error: OSError, *, is_short: bool = False) -> None:
        """Take account of a connect for a client that failed.

        :param is_short: whether it had hardly any time: one says nothing of the target, several in a row do.
        """
        if is_short:
            with self._lock:
                member = self.members[number]
                member.short += 1
                if member.short < _MOST_SHORT:
                    return
        self._handle(number, Event.FAILED, problem=str(error))

    def set_enabled(self, number: int, enabled: bool) -> None:
        """Give a target no new streams, or give it streams again after a probe."""
        self._handle(number, Event.ENABLE if enabled else Event.DISABLE)

    def states(self) -> list[TargetState]:
        """Return the states of all targets, in their order."""
        now = time.monotonic()
        with self._lock:
            return [
                TargetState(
                    member.name,
                    member.health.state.value,
                    now - member.health.since,
                    member.active,
                    member.health.latency,
                    member.health.failures,
                    member.health.problem,
                )
                for member in self.members
            ]

    def problem(self) -> str:
        """Return why no target gets a stream."""
        with self._lock:
            found = [
                f"{one.name} is disabled"
                if one.health.state is HealthState.DISABLED
                else f"{one.name}: {one.health.problem.removeprefix(f'{one.dialer.target}: ')}"
                for one in self.members
                if one.health.state is not HealthState.UP
            ]
        return "; ".join(found)

    def measure(self) -> None:
        """Measure all targets that are compared, as long as streams are asked for: also those that get none."""
        if self.selection is Selection.FASTEST and len(self.members) > 1:
            self._used = time.monotonic()
            if self._schedule is None:
                self.probe_every(self._measurement)

    def _is_used(self) -> bool:
        return time.monotonic() - self._used < self._measurement.interval

    def probe_every(self, schedule: ProbeSchedule | None) -> None:
        """Probe each target now and then; see :meth:`TargetGroup.probe_every`."""
        with self._lock:
            if schedule == self._schedule or (schedule is not None and not self._acquire()):
                return
            self._schedule = schedule
            if schedule is None:
                self._earlier = None
            aborts = [self._forget(member) for member in self.members if member.health.state is HealthState.UP]
            if schedule is not None:
                for number in range(len(self.members)):
                    self._wait_for_next(number, is_first=True)
            self._let_go()
        # Without the lock: giving up may call back.
        for abort in aborts:
            if abort is not None:
                abort()

    def take_over(self, outcome: ProbeOutcome | None, known: Sequence[TargetState | None]) -> None:
        """Begin with what another group knows; see :meth:`TargetGroup.take_over`.

        :param outcome: of its last probes.
        :param known: the state of each target there; ``None`` for one that is not there.
        """
        now = time.monotonic()
        with self._lock:
            self._earlier = outcome
            for number, (member, state) in enumerate(zip(self.members, known, strict=True)):
                if state is None:
                    continue
                if state.state in _FAILING and member.health.handle(Event.FAILED, now, problem=state.problem):
                    self._wait(number, now)
                member.health.latency, member.health.failures = state.latency, state.failures
                member.health.since = now - state.since

    def probe_outcome(self) -> ProbeOutcome | None:
        """Return the outcome of the last probes; see :meth:`TargetGroup.probe_outcome`."""
        with self._lock:
            earlier = self._earlier
            if self._schedule is None:
                return earlier  # the schedule is about to come
            found = [one.outcome for one in self.members if one.outcome is not None]
            passed = [
                one.outcome
                for one in self.members
                if one.health.state is HealthState.UP and one.outcome is not None and not one.outcome.problem
            ]
            untested = {one.health.state for one in self.members if one.outcome is None} - {HealthState.DISABLED}
        if passed:
            return max(passed)
        if earlier is not None and HealthState.UP in untested:
            return earlier
        if untested or not found:
            return ProbeOutcome(None)
        last = max(found)
        return ProbeOutcome(last.finished, last.seconds, self.problem())

    def close(self) -> None:
        """End the probes. Idempotent; a target that is down is probed again only after another failure."""
        with self._lock:
            self._is_closed = True
            self._schedule = self._earlier = None
            aborts = [self._forget(member) for member in self.members]
            self._let_go()
        for abort in aborts:
            if abort is not None:
                abort()

    def reopen(self) -> None:
        """Probe again, after :meth:`close` or in a forked child: the group is used again."""
        if self._process != os.getpid():
            self.abandon()
        if not self._is_closed:
            return
        with self._lock:
            self._is_closed = False
            self._count_as_up()

    def abandon(self) -> None:
        """In a forked child: the lock may be held for ever, and no probe is under way."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._io_thread = self._schedule = None
        for member in self.members:
            member.timer = member.give_up = None
            member.is_probed = False
        self._count_as_up()

    def _count_as_up(self) -> None:
        for member in self.members:
            if member.health.state in (HealthState.DOWN, HealthState.PROBING):
                member.health = Health(time.monotonic())

    # -- the events of one target -------------------------------------------------------------------------------------

    def _handle(
        self, number: int, event: Event, *, seconds: float | None = None, problem: str = "", probe: int | None = None
    ) -> None:
        member, now = self.members[number], time.monotonic()
        with self._lock:
            # The outcome of a probe that was given up, and was on its way here.
            if probe is not None and probe != member.probe:
                return
            before = member.health.state
            if event in (Event.SUCCEEDED, Event.FAILED):
                member.short = 0
            if event is Event.SUCCEEDED and self._schedule is not None and self._schedule.probe != "connect":
                return  # a connect proves less than the probe that the target has to pass, and takes another time
            action = member.health.handle(event, now, seconds=seconds, problem=problem)
            after = member.health.state
            is_missed = event is Event.PROBE_MISSED and after is HealthState.UP
            if event in _PROBED:
                member.give_up, member.is_probed = None, False
                outcome = ProbeOutcome(time.time(), now - member.begun, problem)
                if not is_missed:
                    member.outcome = outcome
                elif member.outcome is not None:
                    member.outcome = outcome._replace(problem=member.outcome.problem)  # its verdict still holds
            abort = self._forget(member) if action & Action.FORGET else None
            if self._is_closed:
                action = Action.NOTHING
            if action & Action.WAIT:
                self._wait(number, now)
            if action & Action.PROBE:
                member.probe += 1
                probe = member.probe
                member.is_probed, member.begun = True, now
            else:
                self._wait_for_next(number)
                self._let_go()
        if abort is not None:
            abort()
        if before is not after:
            self._log(member, before, problem)
        elif is_missed:
            text = "%s: target %s: a probe failed: %s; another one follows"
            logger.info(text, self._name, member.name, printable(problem, _LONGEST))
        if action & Action.PROBE:
            # Without the lock: a connect may be over at once, and then comes back here.
            self._begin_probe(number, probe or 0)

    def _log(self, member: _Member, before: HealthState, problem: str) -> None:
        state, name, target = member.health.state, self._name, member.name
        if state is HealthState.DOWN and before is HealthState.UP:
            text = "%s: target %s is down: %s; it gets no clients until a probe passes"
            logger.warning(text, name, target, printable(problem, _LONGEST))
        elif state is HealthState.UP:
            logger.warning("%s: target %s is up again", name, target)
        elif state is HealthState.DISABLED:
            logger.warning("%s: target %s is disabled", name, target)

    def _wait(self, number: int, now: float) -> None:
        """Wait for the back-off of a target. With the lock."""
        member = self.members[number]
        if not self._acquire():
            member.health = Health(now)  # it is tried by the next client
            return
        longest = math.inf if self._schedule is None else self._schedule.interval
        self._start_timer(number, now + min(member.health.delay, longest), now)

    def _wait_for_next(self, number: int, *, is_first: bool = False) -> None:
        """Wait for the next probe of a target that is up, if it is to have one and does not wait yet. With the lock."""
        member, schedule = self.members[number], self._schedule
        if (
            schedule is None
            or member.timer is not None
            or member.is_probed
            or member.health.state is not HealthState.UP
        ):
            return
        now, interval = time.monotonic(), schedule.interval
        if is_first and self._earlier is not None:
            due = now  # what is known is of other targets
        elif is_first:
            due = now + random.uniform(0, min(_FIRST, interval * _SPREAD))  # noqa: S311  (no secret)
        else:
            due = max(now, member.begun + interval * random.uniform(1 - _SPREAD, 1 + _SPREAD))  # noqa: S311
        self._start_timer(number, due, now)

    def _acquire(self) -> bool:
        """Hold the I/O thread; return whether there is one. With the lock."""
        if self._io_thread is None:
            try:
                self._io_thread = IOThread.acquire(self)
            except OSError as error:
                logger.warning("%s: targets cannot be probed: %s", self._name, error)
        return self._io_thread is not None

    def _start_timer(self, number: int, due: float, now: float) -> None:
        assert self._io_thread is not None, "its caller holds it"
        loop = self._io_thread.loop
        timer = Timer(loop.timers, lambda _: self._due(number, timer))
        self.members[number].timer = timer
        # Timers belong to the I/O thread; this may be any.
        loop.call(functools.partial(timer.start, due, now))

    def _due(self, number: int, timer: Timer) -> None:
        with self._lock:
            if self.members[number].timer is not timer:
                return  # another thread has stopped it, or has started another one
            self.members[number].timer = None
        schedule = self._schedule
        if schedule is not None and not schedule.is_wanted():
            if schedule is not self._measurement:
                return self.close()  # a connect would take a target back that failed more than that
            self.probe_every(None)
            schedule = None
        if schedule is not None or self.members[number].health.state is not HealthState.UP:
            self._handle(number, Event.DUE)

    def _forget(self, member: _Member) -> Abort | None:
        """Stop the timer and the probe of a target; return what gives the probe up. With the lock."""
        member.probe += 1
        member.is_probed = False
        timer, member.timer = member.timer, None
        if timer is not None and self._io_thread is not None:
            self._io_thread.loop.call(timer.stop)
        abort, member.give_up = member.give_up, None
        return abort

    def _let_go(self) -> None:
        """Release the I/O thread if no target needs it. With the lock."""
        waiting = (HealthState.DOWN, HealthState.PROBING)
        if self._io_thread is not None and (
            self._is_closed
            or (self._schedule is None and not any(member.health.state in waiting for member in self.members))
        ):
            self._io_thread.release(self)
            self._io_thread = None

    def _begin_probe(self, number: int, probe: int) -> None:
        member, schedule, begun = self.members[number], self._schedule, time.monotonic()
        done = functools.partial(self._probed, number, probe, begun)
        try:
            dialer, timeout = introduced(member.dialer, self.header), _PROBE_TIMEOUT
            if schedule is not None:
                dialer, timeout = answered(dialer, schedule.probe, dialer.target), schedule.timeout
            abort = self._probe(dialer, begun + timeout, done)
        except OSError as error:
            return done(error)
        with self._lock:
            # It may be over before it returned what gives it up.
            if member.probe == probe and member.is_probed:
                member.give_up = abort
                return None
        abort()
        return None

    def _probed(self, number: int, probe: int, begun: float, outcome: Stream | OSError) -> None:
        if isinstance(outcome, Stream):
            outcome.close()
            self._handle(number, Event.PROBE_PASSED, seconds=time.monotonic() - begun, probe=probe)
        elif outcome.errno in (*LOCAL, NO_PORT) and self._skip(number, probe):
            pass  # it says nothing about the target
        else:
            self._handle(number, failure(outcome), problem=str(outcome), probe=probe)

    def _skip(self, number: int, probe: int) -> bool:
        """Take a probe that could not be made; return whether the target stays up, until the next one."""
        with self._lock:
            member = self.members[number]
            if probe != member.probe or member.health.state is not HealthState.UP:
                return False
            member.give_up, member.is_probed = None, False
            self._wait_for_next(number)
            return True
