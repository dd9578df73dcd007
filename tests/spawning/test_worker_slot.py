"""``relay.spawning.worker_slot``: a process is started, watched and replaced."""

from __future__ import annotations

import logging
import sys
import threading

import pytest
from helpers import WAIT, wait_until
from state_table import rows_of

import relay
from relay.spawning import worker_slot
from relay.spawning.worker_slot import SlotEvent, SlotState, WorkerSlot, next_state

ROWS = [(SlotState(state), SlotEvent(event), SlotState(after)) for state, event, after in rows_of(worker_slot)]
POSSIBLE = {*worker_slot._NEXT, *((SlotState.ENDED, event) for event in SlotEvent)}


@pytest.mark.parametrize(("state", "event", "after"), ROWS)
def test_each_row_of_the_table(state, event, after):
    assert next_state(state, event) is after


def test_the_table_has_every_row():
    assert {(state, event) for state, event, _ in ROWS} == POSSIBLE


class Process:
    """A process that lives until the test says so."""

    def __init__(self, number):
        self.pid = number
        self.name = f"process {number}"
        self.fate = "was killed by signal 9"
        self._over = threading.Event()

    def die(self):
        self._over.set()

    start_close = close = die

    def is_watched_here(self):
        return False

    def join(self):
        assert self._over.wait(WAIT)


class Owner:
    """Starts such processes, and keeps what happens."""

    def __init__(self):
        self.started = []
        self.up = []
        self.died = 0
        self.errors = []  # to raise instead of starting one

    def start_process(self, on_message):
        if self.errors:
            raise self.errors.pop(0)
        self.started.append(Process(len(self.started) + 1))
        return self.started[-1]

    def on_up(self, number):
        self.up.append(number)

    def on_message(self, number, message):
        raise AssertionError("none of them says anything")

    def on_died(self, number):
        self.died += 1
        return 7


@pytest.fixture
def owner():
    return Owner()


@pytest.fixture
def slot(owner):
    made = WorkerSlot(3, owner)
    made.start()
    made.wait_for_start()
    yield made
    made.close()
    assert (made.status().state, made.process) == ("ended", None)


def test_a_process_that_dies_old_is_replaced_at_once(owner, slot, monkeypatch, caplog):
    monkeypatch.setattr(worker_slot, "_YOUNG", 0.0)
    monkeypatch.setattr(worker_slot, "_WAITS", (WAIT,))
    for number in range(1, 4):
        wait_until(lambda expected=number: slot.status().pid == expected)
        assert slot.status() == (4, number, "running", number - 1)
        owner.started[-1].die()
    wait_until(lambda: slot.status().pid == 4)
    assert (owner.up, owner.died) == ([3] * 4, 3)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert lines[0] == (
        "worker 4: the process 1 was killed by signal 9; 7 connections are lost, and another process takes its place"
    )


def test_one_that_keeps_dying_young_waits_longer_and_longer(owner, slot, monkeypatch):
    waited = []
    monkeypatch.setattr(worker_slot, "_WAITS", Waits(waited))
    for number in range(1, 5):
        wait_until(lambda expected=number: slot.status().pid == expected)
        owner.started[-1].die()
    wait_until(lambda: slot.status().pid == 5)
    assert waited == [0, 1, 2, 3]


def test_one_that_cannot_be_started_again_is_tried_again(owner, slot, monkeypatch, caplog):
    waited = []
    monkeypatch.setattr(worker_slot, "_WAITS", Waits(waited))
    owner.errors = [relay.RelayError("no room"), OSError("no memory")]
    owner.started[-1].die()
    wait_until(lambda: slot.status().pid == 2)
    assert waited == [0, 2, 3]
    assert "worker 4: cannot start a process: no room; it is tried again" in caplog.messages


def test_closing_ends_the_wait(owner, slot, monkeypatch):
    monkeypatch.setattr(worker_slot, "_WAITS", (WAIT,))
    owner.started[-1].die()
    wait_until(lambda: slot.status().state == "waiting")
    assert slot.process is None
    slot.close()
    assert len(owner.started) == 1


@pytest.mark.parametrize("error", [relay.RelayError("no interpreter"), OSError("no memory")])
def test_the_first_process_must_start(owner, error):
    owner.errors = [error]
    made = WorkerSlot(0, owner)
    made.start()
    with pytest.raises(type(error), match=str(error)):
        made.wait_for_start()
    made.close()
    assert made.status() == (1, None, "ended", 0)


class Waits:
    """No time at all, and notes for the how-manieth failure in a row it was asked for."""

    def __init__(self, asked):
        self._asked = asked

    def __len__(self):
        return sys.maxsize

    def __getitem__(self, index):
        self._asked.append(index)
        return 0.0
