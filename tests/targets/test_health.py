"""The table of a target's health, and its back-off."""

import itertools

import pytest
from state_table import rows_of

from relay.eventloop import backoff
from relay.targets import health as module
from relay.targets.health import Action, Event, Health, HealthState

UP, DOWN, PROBING, DISABLED = HealthState

ROWS = [
    (UP, Event.FAILED, DOWN, Action.WAIT | Action.FORGET),
    (UP, Event.SUCCEEDED, UP, Action.NOTHING),
    (UP, Event.DUE, UP, Action.PROBE),
    (UP, Event.PROBE_PASSED, UP, Action.NOTHING),
    (UP, Event.PROBE_MISSED, UP, Action.WAIT),
    (UP, Event.PROBE_FAILED, DOWN, Action.WAIT),
    (UP, Event.DISABLE, DISABLED, Action.FORGET),
    (DOWN, Event.DUE, PROBING, Action.PROBE),
    (DOWN, Event.FAILED, DOWN, Action.NOTHING),
    (DOWN, Event.SUCCEEDED, UP, Action.FORGET),
    (DOWN, Event.DISABLE, DISABLED, Action.FORGET),
    (PROBING, Event.FAILED, DOWN, Action.WAIT | Action.FORGET),
    (PROBING, Event.SUCCEEDED, UP, Action.FORGET),
    (PROBING, Event.PROBE_PASSED, UP, Action.NOTHING),
    (PROBING, Event.PROBE_MISSED, DOWN, Action.WAIT),
    (PROBING, Event.PROBE_FAILED, DOWN, Action.WAIT),
    (PROBING, Event.DISABLE, DISABLED, Action.FORGET),
    (DISABLED, Event.FAILED, DISABLED, Action.NOTHING),
    (DISABLED, Event.SUCCEEDED, DISABLED, Action.NOTHING),
    (DISABLED, Event.ENABLE, PROBING, Action.PROBE),
]


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """No jitter."""
    monkeypatch.setattr(backoff, "jittered", lambda seconds: seconds)


def in_state(state):
    health = Health(1.0)
    health.handle(Event.SUCCEEDED, 1.0, seconds=0.1)
    events = {UP: (), DOWN: (Event.FAILED,), PROBING: (Event.FAILED, Event.DUE), DISABLED: (Event.DISABLE,)}
    for event in events[state]:
        health.handle(event, 1.0, problem="it is down")
    assert health.state is state
    return health


def test_the_table_is_that_of_the_module():
    assert rows_of(module) == [(state.value, event.value, after.value) for state, event, after, _ in ROWS]


@pytest.mark.parametrize(("state", "event", "after", "action"), ROWS)
def test_each_row(state, event, after, action):
    health = in_state(state)
    assert health.handle(event, 2.0, problem="again") == action
    assert health.state is after
    is_same = after is state or {state, after} == {DOWN, PROBING}  # how long it fails does not begin anew at a probe
    assert health.since == (1.0 if is_same else 2.0)


OTHERS = sorted(set(itertools.product(HealthState, Event)) - {row[:2] for row in ROWS}, key=str)


@pytest.mark.parametrize(("state", "event"), OTHERS)
def test_other_events_change_nothing(state, event):
    health = in_state(state)
    assert health.handle(event, 2.0) is Action.NOTHING
    assert health.state is state


def test_the_back_off_doubles_up_to_its_limit_and_begins_anew_after_a_success():
    health = Health(0.0)
    delays = []
    health.handle(Event.FAILED, 0.0, problem="p")
    for _ in range(8):
        delays.append(health.delay)
        health.handle(Event.DUE, 0.0)
        health.handle(Event.PROBE_FAILED, 0.0, problem="q")
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert (health.failures, health.problem) == (9, "q")
    health.handle(Event.DUE, 0.0)
    health.handle(Event.PROBE_PASSED, 0.0, seconds=0.1)
    assert (health.state, health.problem) == (UP, "")
    health.handle(Event.FAILED, 0.0, problem="p")
    assert health.delay == 0.5


MISSED, FAILED, PASSED, CLIENT = Event.PROBE_MISSED, Event.PROBE_FAILED, Event.PROBE_PASSED, Event.SUCCEEDED


def test_the_latency_is_an_average():
    health = Health(0.0)
    assert health.latency is None
    health.handle(Event.SUCCEEDED, 0.0, seconds=1.0)
    health.handle(Event.SUCCEEDED, 0.0, seconds=2.0)
    assert health.latency == 1.25
