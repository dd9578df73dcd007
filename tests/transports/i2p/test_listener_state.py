"""``relay.transports.i2p.listener_state``: every row of its table, and the notifications."""

import itertools

import pytest
from helpers import Thread, wait_until
from state_table import each_row_of

from relay.carriers.link import CarrierState
from relay.transports.i2p import listener_state
from relay.transports.i2p.listener_state import TRANSITIONS, Action, Event, ListenerMachine, ListenerState

NAMES = [state.value for state in ListenerState]
TABLE = each_row_of(listener_state, NAMES)
ERROR = OSError("the error of the event")


class Listener:
    """Records what a machine does."""

    def __init__(self):
        self.performed = []
        self.told = []
        self.machine = ListenerMachine("here", self.perform)
        self.machine.subscribe(lambda state, error: self.told.append((state, error)))

    def perform(self, action, before, error):
        self.performed.append((action.value, before.value, error))
        assert not self.told, "the watchers are called after the action"


def in_state(name):
    made = Listener()
    made.machine.state = ListenerState(name)
    return made


@pytest.mark.parametrize(("state", "event", "following", "action"), TABLE)
def test_every_row(state, event, following, action):
    made = in_state(state)
    made.machine.handle(Event(event), ERROR)
    assert made.machine.state.value == following
    assert made.performed == ([(action, state, ERROR)] if action != "none" else [])
    assert made.told == [(following, ERROR)]


@pytest.mark.parametrize(
    ("state", "event"),
    sorted(set(itertools.product(NAMES, [event.value for event in Event])) - {row[:2] for row in TABLE}),
)
def test_what_is_not_in_the_table_changes_nothing(state, event):
    made = in_state(state)
    made.machine.handle(Event(event), ERROR)
    assert (made.machine.state.value, made.machine.error) == (state, None)
    assert not made.performed
    assert not made.told


def test_the_table_is_whole():
    assert {row[:2] for row in TABLE} == {(state.value, event.value) for state, event in TRANSITIONS}


@pytest.mark.parametrize("state", sorted({state.reported.value for state in CarrierState}))
def test_each_state_that_a_carrier_reports_is_an_event(state):
    assert isinstance(Event.of(CarrierState(state)), Event)


def test_the_same_state_is_reported_once_unless_the_error_is_new():
    made = Listener()
    for error in (None, ERROR, ERROR, None):
        made.machine.handle(Event.REFUSED, error)
    assert made.told == [("connecting", ERROR)]
    assert made.machine.error is None


def test_changes_during_an_action_are_reported_in_order():
    told = []

    def refuse(action, before, error):
        machine.handle(Event.REFUSED, ERROR)

    machine = ListenerMachine("here", refuse)
    machine.state = ListenerState.BACKING_OFF
    machine.subscribe(lambda state, error: told.append((state, error)))
    machine.handle(Event.SESSION_UP)
    assert told == [("connecting", None), ("connecting", ERROR)]


def test_a_watcher_that_raises_hurts_no_other(caplog):
    made = Listener()
    machine = ListenerMachine("here", made.perform)

    def broken(state, error):
        raise RuntimeError("a bug of the user's")

    machine.subscribe(broken)
    machine.subscribe(lambda state, error: made.told.append(state))
    machine.handle(Event.READY)
    assert made.told == ["up"]
    assert "a bug of the user's" in caplog.text


def test_closing_wakes_and_is_reported_later():
    made = Listener()
    machine = made.machine
    waiting = Thread(machine.wait, lambda: machine.state is ListenerState.CLOSED, None)
    wait_until(lambda: machine._changed._waiters)
    assert machine.close()
    assert not machine.close()
    waiting.result()
    assert not made.told
    machine.report()
    assert made.told == [("closed", None)]


def test_waiting_has_a_timeout():
    Listener().machine.wait(lambda: False, 0.0)


def test_every_action_is_performed_somewhere():
    assert {action for _, action in TRANSITIONS.values()} == set(Action)
