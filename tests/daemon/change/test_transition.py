"""The states of a change that happens as a whole or not at all, and the order of its steps."""

import threading

import pytest
from helpers import WAIT
from state_table import rows_of

from relay.daemon.change import transition as module
from relay.daemon.change.transition import Step, Transition, TransitionState, prepare_all, side_by_side

EVENTS = ("add", "vacate", "commit", "restore")
TABLE = {
    ("prepared", "add"): ("prepared", []),
    ("prepared", "vacate"): ("vacated", ["vacate a", "vacate b"]),
    ("prepared", "commit"): ("committed", ["commit a", "commit b"]),
    ("prepared", "restore"): ("restored", ["restore b", "restore a"]),
    ("vacated", "commit"): ("committed", ["commit a", "commit b"]),
    ("vacated", "restore"): ("restored", ["restore b", "restore a"]),
    ("committed", "restore"): ("restored", ["restore b", "restore a"]),
    ("restored", "restore"): ("restored", []),
}
WAYS = {"prepared": (), "vacated": ("vacate",), "committed": ("vacate", "commit"), "restored": ("restore",)}


class Parts:
    """Steps that note what is done."""

    def __init__(self):
        self.done = []

    def step(self, name, vacate=None):
        return Step(
            vacate or (lambda: self.done.append(f"vacate {name}")),
            lambda: self.done.append(f"commit {name}"),
            lambda: self.done.append(f"restore {name}"),
        )


@pytest.fixture
def parts():
    return Parts()


def test_the_table_has_the_same_rows():
    assert rows_of(module) == [(state, event, after) for (state, event), (after, _) in TABLE.items()]


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", WAYS)
def test_each_event_of_the_table(parts, state, event):
    change = Transition()
    change.add(parts.step("a"))
    change.add(parts.step("b"))
    for before in WAYS[state]:
        getattr(change, before)()
    parts.done.clear()
    call = getattr(change, event)
    arguments = (None,) if event == "add" else ()
    if (state, event) not in TABLE:
        with pytest.raises(AssertionError):
            call(*arguments)
        assert parts.done == []
        return
    call(*arguments)
    after, done = TABLE[state, event]
    assert change.state is TransitionState[after.upper()]
    assert parts.done == done


def test_what_fails_half_way_is_restored_with_all_others(parts):
    def fail():
        raise OSError("no")

    change = Transition()
    for step in (parts.step("a"), parts.step("b", fail), parts.step("c")):
        change.add(step)
    with pytest.raises(OSError, match="no"):
        change.vacate()
    change.restore()
    assert parts.done == ["vacate a", "restore c", "restore b", "restore a"]


def test_problems_of_the_way_back_are_returned_also_those_of_a_part():
    inner, outer = Transition(), Transition()
    inner.add(Step(restore=lambda: ["one: cannot listen again"]))
    outer.add(inner)
    outer.add(Step())
    outer.add(Step(restore=lambda: ["two: cannot listen again"]))
    assert outer.restore() == ["two: cannot listen again", "one: cannot listen again"]


def test_all_is_prepared_or_nothing(parts):
    def fail():
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        prepare_all([lambda: parts.step("a"), lambda: None, lambda: parts.step("b"), fail])
    assert parts.done == ["restore b", "restore a"]
    parts.done.clear()
    prepare_all([lambda: parts.step("a"), lambda: None]).commit()
    assert parts.done == ["commit a"]


def test_what_takes_long_goes_on_side_by_side_also_without_threads(monkeypatch):
    barrier = threading.Barrier(3)
    calls = [lambda name=name: f"{name}{barrier.wait(WAIT) >= 0}" for name in "abc"]
    assert side_by_side(calls) == ["aTrue", "bTrue", "cTrue"]

    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert side_by_side([lambda: "a", lambda: "b"]) == ["a", "b"]
