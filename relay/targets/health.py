"""The health of one of several targets: whether new streams may go there.

========== ============ ========== ==================================================
state      event        next state action
========== ============ ========== ==================================================
up         failed       down       wait for the back-off; give the probe up
up         succeeded    up
up         due          up         begin a probe
up         probe passed up
up         probe missed up         wait for the back-off
up         probe failed down       wait for the back-off
up         disable      disabled   give the probe up
down       due          probing    begin a probe
down       failed       down
down       succeeded    up         forget the back-off
down       disable      disabled   forget the back-off
probing    failed       down       wait for a longer back-off; give the probe up
probing    succeeded    up         give the probe up
probing    probe passed up         forget the failures
probing    probe missed down       wait for a longer back-off
probing    probe failed down       wait for a longer back-off
probing    disable      disabled   give the probe up
disabled   failed       disabled
disabled   succeeded    disabled
disabled   enable       probing    begin a probe
========== ============ ========== ==================================================

*failed* and *succeeded* are connects for clients. One that began before the target was taken out may end later. A
target that is up is probed if its tunnel has a probe. Events that a state does not name change nothing.

A probe that fails is *missed*: it may be lost where the target is only busy, so it is repeated soon. It has *failed* if
the target refused it, which is certain, if it is the third one in a row (``fall 3`` of HAProxy), or if nothing has
succeeded yet, as with a target that HAProxy has just begun to check. One that passes is enough to return (``rise 1``),
for a client whose connect fails gets the next target.
"""

from __future__ import annotations

import enum

from ..eventloop.backoff import Backoff

_FALL = 3  # probes in a row that fail, of a target that is up
_BACKOFF = (0.5, 30.0)  # seconds after the first failure in a row, and at most


class HealthState(enum.Enum):
    """The state of a target: only one that is ``up`` gets new streams."""

    UP = "up"
    DOWN = "down"
    PROBING = "probing"
    DISABLED = "disabled"


class Event(enum.Enum):
    """An event of a target."""

    FAILED = "failed"
    SUCCEEDED = "succeeded"
    DUE = "due"
    PROBE_PASSED = "probe passed"
    PROBE_MISSED = "probe missed"
    PROBE_FAILED = "probe failed"
    DISABLE = "disable"
    ENABLE = "enable"


class Action(enum.Flag):
    """The work of the owner of a target after an event."""

    NOTHING = 0
    WAIT = enum.auto()
    """Wait for :attr:`Health.delay`, then report ``due``."""
    PROBE = enum.auto()
    """Begin a probe."""
    FORGET = enum.auto()
    """Stop to wait, and give the probe up."""


_TRANSITIONS: dict[tuple[HealthState, Event], tuple[HealthState, Action]] = {
    (HealthState.UP, Event.FAILED): (HealthState.DOWN, Action.FORGET | Action.WAIT),
    (HealthState.UP, Event.SUCCEEDED): (HealthState.UP, Action.NOTHING),
    (HealthState.UP, Event.DUE): (HealthState.UP, Action.PROBE),
    (HealthState.UP, Event.PROBE_PASSED): (HealthState.UP, Action.NOTHING),
    (HealthState.UP, Event.PROBE_MISSED): (HealthState.UP, Action.WAIT),
    (HealthState.UP, Event.PROBE_FAILED): (HealthState.DOWN, Action.WAIT),
    (HealthState.UP, Event.DISABLE): (HealthState.DISABLED, Action.FORGET),
    (HealthState.DOWN, Event.DUE): (HealthState.PROBING, Action.PROBE),
    (HealthState.DOWN, Event.FAILED): (HealthState.DOWN, Action.NOTHING),
    (HealthState.DOWN, Event.SUCCEEDED): (HealthState.UP, Action.FORGET),
    (HealthState.DOWN, Event.DISABLE): (HealthState.DISABLED, Action.FORGET),
    (HealthState.PROBING, Event.FAILED): (HealthState.DOWN, Action.FORGET | Action.WAIT),
    (HealthState.PROBING, Event.SUCCEEDED): (HealthState.UP, Action.FORGET),
    (HealthState.PROBING, Event.PROBE_PASSED): (HealthState.UP, Action.NOTHING),
    (HealthState.PROBING, Event.PROBE_MISSED): (HealthState.DOWN, Action.WAIT),
    (HealthState.PROBING, Event.PROBE_FAILED): (HealthState.DOWN, Action.WAIT),
    (HealthState.PROBING, Event.DISABLE): (HealthState.DISABLED, Action.FORGET),
    (HealthState.DISABLED, Event.FAILED): (HealthState.DISABLED, Action.NOTHING),
    (HealthState.DISABLED, Event.SUCCEEDED): (HealthState.DISABLED, Action.NOTHING),
    (HealthState.DISABLED, Event.ENABLE): (HealthState.PROBING, Action.PROBE),
}


_FAILING = frozenset({HealthState.DOWN, HealthState.PROBING})
_FAILURES = frozenset({Event.FAILED, Event.PROBE_MISSED, Event.PROBE_FAILED})
_SUCCESSES = frozenset({Event.SUCCEEDED, Event.PROBE_PASSED})


class Health:
    """The health of one target: plain data. Its owner has a lock.

    :param now: the time, monotonic seconds.
    """

    __slots__ = ("state", "since", "delay", "problem", "latency", "failures", "_backoff")

    def __init__(self, now: float) -> None:
        self.state = HealthState.UP
        self.since = now
        """The beginning of the state, monotonic seconds; ``down`` and ``probing`` count as one."""
        self.delay = 0.0
        """Seconds to wait before the next probe."""
        self.problem = ""
        """The error of the last failure, while the target is not up."""
        self.latency: float | None = None
        """Seconds that a connect takes, or the probe, on average; ``None`` if none has succeeded yet."""
        self.failures = 0
        """Connects and probes that failed, since the start."""
        self._backoff = Backoff(*_BACKOFF, jitter=True)  # after failures without a success between them

    def handle(self, event: Event, now: float, *, seconds: float | None = None, problem: str = "") -> Action:
        """Change the state.

        :param event: what happened.
        :param now: monotonic seconds.
        :param seconds: that a successful connect or probe took.
        :param problem: the error of one that failed.
        :returns: what the owner has to do.
        """
        if event is Event.PROBE_MISSED and (self._backoff.failures >= _FALL - 1 or self.latency is None):
            event = Event.PROBE_FAILED
        if event in _FAILURES:
            self.failures += 1
            self.problem = problem
        elif seconds is not None:
            # A moving average: one slow connect does not move all clients.
            self.latency = seconds if self.latency is None else self.latency * 0.75 + seconds * 0.25
        found = _TRANSITIONS.get((self.state, event))
        if found is None:
            return Action.NOTHING
        before, (self.state, action) = self.state, found
        if self.state is not before and not {before, self.state} <= _FAILING:
            self.since = now
        if self.state is HealthState.UP:
            self.problem = ""
            if event in _SUCCESSES:
                self._backoff.reset()
        if action & Action.WAIT:
            self.delay = self._backoff.next()
        return action


def failure(error: Exception) -> Event:
    """Return the event of a probe that has failed."""
    return Event.PROBE_FAILED if getattr(error, "reason", "") == "refused" else Event.PROBE_MISSED
