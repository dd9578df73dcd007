"""``relay.spawning.worker_slot``: a process is started, watched and replaced."""

import itertools
import logging
import threading

import pytest
from helpers import WAIT, wait_until
from state_table import rows_of

import relay
from relay.eventloop.backoff import Backoff
from relay.spawning import worker_slot
from relay.spawning.worker_slot import SlotEvent, SlotState, WorkerSlot, next_state

ROWS = [(SlotState(state), SlotEvent(event), SlotState(after)) for state, event, after in rows_of(worker_slot)]


@pytest.mark.parametrize(("state", "event", "after"), ROWS)
def test_each_row_of_the_table(state, event, after):
    assert next_state(state, event) is after


def test_what_is_not_in_the_table_changes_nothing():
    listed = {(state, event) for state, event, _ in ROWS}
    assert listed == set(worker_slot._NEXT)
    for state, event in itertools.product(SlotState, SlotEvent):
        if (state, event) not in listed:
            assert next_state(state, event) is state


class Process:
    """A process that lives until the test says so, or until it is killed."""

    def __init__(self, number, observer):
        self.pid = number
        self.name = f"process {number}"
        self.fate = ""
        self.asked = None  # when
        self._observer = observer
        self._over = threading.Event()

    def die(self):
        self.fate = "was killed by signal 9"
        self._over.set()
        self._observer.on_over()

    kill = start_close = die

    def is_own_thread(self):
        return False

    def oldest_question(self):
        return self.asked

    def give_up_questions(self):
        pass

    def join(self):
        assert self._over.wait(WAIT)


class Owner:
    """Starts such processes, and keeps what happens."""

    def __init__(self, replaces=True):
        self.replaces = replaces
        self.started = []
        self.up = []
        self.died = 0
        self.errors = []  # to raise instead of starting one

    def start_process(self, observer):
        if self.errors:
            raise self.errors.pop(0)
        self.started.append(Process(len(self.started) + 1, observer))
        observer.on_begin(self.started[-1])
        return self.started[-1]

    def on_up(self, number):
        self.up.append(number)

    def on_message(self, number, message):
        raise AssertionError("none of them says anything")

    def on_died(self, number, fate):
        assert fate == "was killed by signal 9" or "did not answer" in fate
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


@pytest.fixture
def waits(monkeypatch):
    """The waits for the time to start again, which take no time at all."""
    waited = []

    class Noting(Backoff):
        def next(self, at_most=None):
            waited.append(super().next(at_most))
            return 0.0

    monkeypatch.setattr(worker_slot, "Backoff", Noting)
    return waited


@pytest.fixture
def patient(monkeypatch):
    """Waits that last longer than a test."""
    monkeypatch.setattr(worker_slot, "_BACKOFF", (WAIT, WAIT))


def test_a_process_that_dies_old_is_replaced_at_once(patient, owner, slot, monkeypatch, caplog):
    monkeypatch.setattr(worker_slot, "_YOUNG", 0.0)
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


def test_one_that_keeps_dying_young_waits_longer_and_longer(waits, owner, slot):
    for number in range(1, 5):
        wait_until(lambda expected=number: slot.status().pid == expected)
        owner.started[-1].die()
    wait_until(lambda: slot.status().pid == 5)
    assert waits == [0.05, 0.1, 0.2, 0.4]


def test_the_first_one_that_dies_young_is_replaced_at_once(patient, owner, slot):
    owner.started[-1].die()
    wait_until(lambda: slot.status().pid == 2)


def test_one_that_cannot_be_started_again_is_tried_again(waits, owner, slot, caplog):
    owner.errors = [relay.RelayError("no room"), OSError("no memory")]
    owner.started[-1].die()
    wait_until(lambda: slot.status().pid == 2)
    assert waits == [0.05, 0.1, 0.2]
    assert "worker 4: cannot start a process: no room; it is tried again" in caplog.messages


def test_closing_ends_the_wait(patient, owner, slot):
    for number in (1, 2):
        wait_until(lambda expected=number: slot.status().pid == expected)
        owner.started[-1].die()
    wait_until(lambda: slot.status().state == "waiting")
    assert slot.process is None
    slot.close()
    assert len(owner.started) == 2


@pytest.mark.parametrize("error", [relay.RelayError("no interpreter"), OSError("no memory")])
def test_the_first_process_must_start(owner, error):
    owner.errors = [error]
    made = WorkerSlot(0, owner)
    made.start()
    with pytest.raises(type(error), match=str(error)):
        made.wait_for_start()
    made.close()
    assert made.status() == (1, None, "ended", 0)


@pytest.fixture
def at_once(monkeypatch):
    """No time for the answers of a process."""
    monkeypatch.setattr(worker_slot, "ANSWER", 0.0)


def test_one_that_has_answered_meanwhile_is_not_stuck(owner, slot):
    wait_until(lambda: owner.up == [3])
    slot.suspect(owner.started[0])
    assert slot.status().state == "running"


def test_a_process_that_was_replaced_is_not_suspected(owner, slot):
    wait_until(lambda: owner.up == [3])
    first = owner.started[0]
    first.asked = 0.0
    first.die()
    wait_until(lambda: slot.status()[1:3] == (2, "running"))
    slot.suspect(first)
    assert slot.status().state == "running"


def test_a_question_that_nothing_waits_for_is_looked_after(owner, slot, at_once, monkeypatch):
    monkeypatch.setattr(worker_slot, "_STEP", WAIT)
    wait_until(lambda: owner.up == [3])
    slot.expect_answers()
    owner.started[0].asked = 0.0
    slot.expect_answers()
    wait_until(lambda: slot.status().state == "stuck")


def test_the_only_process_has_no_successor(caplog):
    owner = Owner(replaces=False)
    slot = WorkerSlot(0, owner)
    slot.start()
    slot.wait_for_start()
    wait_until(lambda: owner.up == [0])
    (process,) = owner.started
    process.asked = 0.0
    slot.suspect(process)
    assert slot.answering is process, "it is never stuck"
    process.die()
    slot.join(WAIT)
    assert (slot.status(), owner.died, owner.up) == ((1, None, "ended", 0), 1, [0])
    assert caplog.messages == [], "its tunnel reports it"


def test_its_own_thread_does_not_wait_for_itself(owner, slot):
    """A log handler may close the pool, in the thread that reports the death of a process."""
    closed = []
    owner.on_died = lambda *_: closed.append(slot.close()) or 0
    owner.started[0].die()
    wait_until(lambda: closed and slot.status().state == "ended")
