"""``relay.daemon.change.replacement``: each row of the table of states, with a call of the test."""

import threading

import pytest
from helpers import WAIT
from state_table import rows_of

from relay.daemon.change import replacement as module
from relay.daemon.change.replacement import ListenerOpening, OpeningState

PROBLEM = OSError("no route")


class Call:
    """The call that opens a listener."""

    def __init__(self, opening, outcome, postponed):
        self.opening, self.report_outcome, self.report_postponed = opening, outcome, postponed
        self.given_up = False

    def outcome(self):
        return self.opening()

    def give_up(self):
        self.given_up = True


@pytest.fixture
def opening(monkeypatch):
    monkeypatch.setattr(module, "BackgroundCall", Call)
    return ListenerOpening(lambda: "bound")


def postpone(opening):
    opening._call.report_postponed(PROBLEM)


def finish(opening):
    opening._call.report_outcome()


WAY = {"OPENING": [], "POSTPONED": [postpone]}
ROWS = [
    ("OPENING", "postponed", "POSTPONED", postpone),
    ("OPENING", "outcome", "OVER", finish),
    ("POSTPONED", "postponed", "POSTPONED", postpone),
    ("POSTPONED", "outcome", "OVER", finish),
]


def test_the_table_has_the_same_rows():
    assert rows_of(module) == [row[:3] for row in ROWS]


@pytest.mark.parametrize("is_handed_over", [False, True])
@pytest.mark.parametrize(("state", "event", "next_state", "act"), ROWS)
def test_each_row(opening, state, event, next_state, act, is_handed_over):
    events = []

    def take_over():
        assert opening.hand_over(lambda: events.append("over"), events.append) is opening._call

    for step in WAY[state]:
        step(opening)
    if is_handed_over:
        take_over()
        events.clear()
    act(opening)
    if not is_handed_over:
        take_over()
        if state == "POSTPONED" and act is finish:
            assert events.pop(0) is PROBLEM, "that of before"
    assert opening._state is OpeningState[next_state]
    assert events == [PROBLEM if act is postpone else "over"]
    assert opening.wait() == (None if act is postpone else "bound")


@pytest.mark.parametrize("act", [postpone, finish])
def test_the_first_event_ends_the_wait(opening, act):
    waiter = threading.Thread(target=opening.wait)
    waiter.start()
    act(opening)
    waiter.join(WAIT)
    assert not waiter.is_alive()


def test_to_give_it_up_is_to_give_up_the_call(opening):
    opening.give_up()
    assert opening._call.given_up
