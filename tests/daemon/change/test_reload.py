"""Turns one after the other, their result, and the preparation of all changes before the first one."""

from __future__ import annotations

import threading
from typing import ClassVar

import pytest
from helpers import WAIT, Thread, wait_until

from relay.daemon.change import reload as module
from relay.daemon.change.reload import TunnelChanges, Turns, verdicts
from relay.daemon.failures import ReloadError
from relay.daemon.member import MemberState
from relay.daemon.verdicts import Change, Verdict


class Held:
    """The work of reloads, which the test releases; returns how many there were, or raises."""

    def __init__(self):
        self.begun = threading.Semaphore(0)
        self.goes_on = threading.Semaphore(0)
        self.count = 0
        self.error = None

    def __call__(self):
        self.count += 1
        self.begun.release()
        assert self.goes_on.acquire(timeout=WAIT)
        if self.error is not None:
            raise self.error
        return self.count


@pytest.fixture
def held():
    return Held()


def test_each_caller_after_the_end_of_one_gets_another(held):
    reloads = Turns(held)
    for count in (1, 2):
        held.goes_on.release()
        assert reloads.run() == count


def test_those_that_come_while_one_waits_get_its_result_or_its_error(held):
    reloads = Turns(held)
    first = Thread(reloads.run)
    assert held.begun.acquire(timeout=WAIT)
    others = [Thread(reloads.run)]
    wait_until(lambda: reloads._next is not None)
    others += [Thread(reloads.run) for _ in range(3)]
    held.goes_on.release()
    assert first.result() == 1
    assert held.begun.acquire(timeout=WAIT)
    held.error = ReloadError(["broken"])
    held.goes_on.release(4)  # those that came too late for the second one have one of their own
    for other in others:
        with pytest.raises(ReloadError, match="broken"):
            other.result()


def test_an_error_does_not_prevent_the_next_one(held):
    reloads = Turns(held)
    held.error = OSError("no")
    held.goes_on.release(2)
    with pytest.raises(OSError, match="no"):
        reloads.run()
    held.error = None
    assert reloads.run() == 2


def test_an_error_has_a_line_for_each_problem_and_a_status():
    error = ReloadError(["one: broken", "two: broken"], 1)
    assert (str(error), error.lines, error.status) == ("one: broken; two: broken", ("one: broken", "two: broken"), 1)
    assert ReloadError(["x"]).status == 2


class Plan:
    """A plan that is the same as another one if its value is."""

    def __init__(self, name, value=0):
        self.name, self.value = name, value


class Member:
    """A tunnel of a group."""

    def __init__(self, name, state=MemberState.LISTENING, value=0):
        self.name, self.state, self.plan = name, state, Plan(name, value)


class Replacement:
    """A change that fails, or not, and notes the order of what is done."""

    calls: ClassVar[list[str]] = []
    broken: ClassVar[dict[str, Exception]] = {}
    crowded: ClassVar[set[str]] = set()

    def __init__(self, change, plan, member):
        self.change, self.plan, self.member, self.error = change, plan, member, None

    def must_vacate(self, leaving):
        return self.change.name in self.crowded

    def prepare(self, preflight, leaving):
        self.calls.append(f"prepare {self.change.name}")

    def wait(self):
        self.calls.append(f"wait {self.change.name}")
        self.error = self.broken.get(self.change.name)

    def discard(self):
        self.calls.append(f"discard {self.change.name}")


class Leaving:
    """The listeners that close: one has closed, and cannot come back."""

    def __init__(self, changes, on_vacated):
        self.vacated = {self: None}

    def restore(self, call):
        return "late: cannot listen again"


@pytest.fixture
def doubles(monkeypatch):
    """Replacements that are doubles, and a comparison by one value."""

    def compare(old, new):
        before = {one.name: one.value for one in old}
        found = [
            Change(one.name, Verdict.NEW if one.name not in before else Verdict(int(before[one.name] != one.value)))
            for one in new
        ]
        names = {change.name for change in found}
        return [*found, *(Change(name, Verdict.GONE) for name in before if name not in names)]

    monkeypatch.setattr(module, "compare", compare)
    monkeypatch.setattr(module, "Replacement", Replacement)
    monkeypatch.setattr(module, "Leaving", Leaving)
    for name, value in (("calls", []), ("broken", {}), ("crowded", set())):
        monkeypatch.setattr(Replacement, name, value)
    return Replacement


def prepared(members, plans):
    tunnels = TunnelChanges(members, plans, print, print)
    tunnels.prepare()
    tunnels.vacate()
    return tunnels.all


def test_what_has_ended_or_drains_is_new_and_what_waits_is_not(doubles):
    members = [Member(state.value, state) for state in MemberState]
    found = {change.name: change.verdict for change in verdicts(members, [one.plan for one in members])}
    over = {"failed", "closed", "draining"}
    assert {name for name, verdict in found.items() if verdict is Verdict.NEW} == over
    assert {verdict for name, verdict in found.items() if name not in over} == {Verdict.SAME}


def test_what_needs_the_place_of_another_one_is_prepared_last(doubles):
    doubles.crowded.add("a")
    made = prepared([Member("a"), Member("gone")], [Plan("a", 1), Plan("b")])
    assert [(each.change.name, each.change.verdict) for each in made] == [
        ("a", Verdict.TUNED),
        ("b", Verdict.NEW),
        ("gone", Verdict.GONE),
    ]
    assert doubles.calls == ["prepare b", "prepare gone", "wait b", "wait gone", "prepare a", "wait a"]


def test_one_problem_undoes_all_and_nothing_is_vacated(doubles):
    doubles.crowded.add("a")
    doubles.broken |= {"b": ValueError("b is wrong"), "late": OSError(98, "Address already in use")}
    tunnels = TunnelChanges([Member("a")], [Plan("a", 1), Plan("b"), Plan("late")], print, print)
    with pytest.raises(ReloadError) as error:
        tunnels.prepare()
    assert error.value.lines == ("b: b is wrong", "late: Address already in use")
    assert error.value.status == 2
    assert "prepare a" not in doubles.calls
    assert tunnels.restore() == ["late: cannot listen again"]
    assert doubles.calls[-3:] == ["discard a", "discard b", "discard late"]


def test_a_failure_at_run_time_is_status_1(doubles):
    doubles.broken["a"] = OSError(98, "Address already in use")
    with pytest.raises(ReloadError) as error:
        prepared([], [Plan("a")])
    assert error.value.status == 1


@pytest.mark.parametrize("value", [0, 1])
def test_a_tunnel_that_has_failed_before_prevents_nothing_unless_it_has_changed(doubles, value):
    doubles.broken["a"] = OSError("as before")
    members = [Member("a", MemberState.FAILED)]
    if value:
        with pytest.raises(ReloadError):
            prepared(members, [Plan("a", value)])
    else:
        (made,) = prepared(members, [Plan("a")])
        assert made.error is not None
