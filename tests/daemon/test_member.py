"""One tunnel of a group: every row of its table of states, the pairs that are errors, and figures that it continues."""

import itertools
from types import SimpleNamespace

import pytest
import state_table

from relay.daemon import member as module
from relay.daemon.failures import ConflictError
from relay.daemon.member import ContinuedFigures, Member, MemberState
from relay.engine.statistics import Statistics

EVENTS = ("postponed", "opened", "failed", "close", "pause", "resume", "drain", "drained")
OVER = (MemberState.FAILED, MemberState.CLOSED)
ROWS = state_table.rows_of(module)
KNOWN = {(state, event) for state, event, _ in ROWS}
ERRORS = [
    (state, event)
    for state in MemberState
    for event in EVENTS
    if (state.value, event) not in KNOWN and event != "drained"  # it is the end of a drain, and follows from one
]


class Ends:
    """The live parts of a tunnel, all in one; it notes the calls and the drains."""

    def __init__(self):
        self.calls = []
        self.relay = self.make_send = self
        self.address, self.target = "here", "there"

    def pause(self):
        self.calls.append("pause")

    def resume(self):
        self.calls.append("resume")

    def close(self):
        self.calls.append("close")

    def metrics(self):
        return SimpleNamespace(ended={"closed": 2})

    def begin(self, tunnel, seconds, drained, spread):
        assert tunnel is self
        self.calls.append(f"drain {seconds:g} {spread:g}")


class Rig:
    """A member, and the events of the table as methods."""

    def __init__(self, state):
        self.member = Member(
            SimpleNamespace(name="t", title="{} → {}".format, options=SimpleNamespace(drain=7.0, drain_spread=3.0))
        )
        self.open = Ends()
        self.given_up = []
        if state not in (MemberState.OPENING, MemberState.FAILED):
            if state is MemberState.WAITING:
                self.postponed()
            else:
                self.opened()
        if state in (MemberState.OPENING, MemberState.WAITING):
            self.member.begin(SimpleNamespace(give_up=lambda: self.given_up.append(True)))
        reach = {
            MemberState.PAUSED: self.pause,
            MemberState.DRAINING: self.drain,
            MemberState.FAILED: self.failed,
            MemberState.CLOSED: self.close,
        }
        reach.get(state, lambda: None)()
        assert self.member.state is state

    def postponed(self):
        self.member.on_postponed("no route; trying again")

    def opened(self):
        self.member.on_opened(self.open)

    def failed(self):
        self.member.on_failed("it is broken", 2)

    def close(self):
        self.member.close()

    def pause(self):
        self.member.pause()

    def resume(self):
        self.member.resume()

    def drain(self):
        self.member.drain(7, lambda: None, self.open)

    def drained(self):
        self.member.on_drained()


@pytest.fixture
def rig():
    """Makes a member in a state."""
    return lambda state: Rig(MemberState(state))


@pytest.mark.parametrize(("state", "event", "following"), ROWS)
def test_each_row_of_the_table(rig, state, event, following):
    one = rig(state)
    before = list(one.open.calls)
    getattr(one, event)()
    now = one.member.now
    assert now.state.value == following
    assert bool(now.problem) == (following in ("waiting", "failed"))
    assert now.status == (2 if following == "failed" else 0)
    assert (now.has_opened) == (state not in ("opening", "waiting", "failed") or event == "opened")
    done = one.open.calls[len(before) :]
    if event in ("pause", "resume"):
        assert done == [event]
    elif event == "drain":
        assert done == ["drain 7 3"]
    elif event in ("close", "failed") and state in ("listening", "paused"):
        assert done == ["close"]
    assert one.given_up == ([True] if event == "close" and state in ("opening", "waiting") else [])


@pytest.mark.parametrize(("state", "event"), ERRORS)
def test_each_other_pair_is_an_error_and_changes_nothing(rig, state, event):
    one = rig(state)
    before, calls = one.member.now, list(one.open.calls)
    with pytest.raises(ConflictError, match=f"t: cannot .*: it is {state.value}"):
        getattr(one, event)()
    assert one.member.now is before
    assert one.open.calls == calls


def test_all_states_are_in_the_table():
    assert {state for state, _, _ in ROWS} == {state.value for state in MemberState}
    assert {event for _, event, _ in ROWS} == set(EVENTS)


def test_a_snapshot_stays_as_it_was(rig):
    one = rig("listening")
    before = one.member.now
    one.pause()
    assert (before.state, one.member.now.state) == (MemberState.LISTENING, MemberState.PAUSED)


@pytest.mark.parametrize(("seconds", "count"), [(7.0, 2), (None, 2), (0.0, 0)])
def test_connections_that_had_time_to_finish_are_counted_if_they_are_reset(rig, seconds, count):
    one = rig("listening")
    one.member.drain(seconds, lambda: None, one.open)
    one.member.drain(0.0, lambda: None, one.open)  # sooner
    assert [one.member.on_drained(), one.member.on_drained()] == [count, 0]


def test_what_is_over_stays_over(rig):
    for state in OVER:
        one = rig(state)
        one.close()
        one.failed()
        assert one.member.state is state


NONE = Statistics("", None, None).metrics(())


class Counting:
    """A tunnel that has accepted so many."""

    def __init__(self, accepted):
        self.accepted = accepted

    def metrics(self):
        assert self.accepted is not None, "it is forgotten"
        return NONE._replace(accepted=self.accepted)

    def recent(self):
        return []


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_tunnels_may_end_in_any_order(order):
    tunnels = [Counting(10**power) for power in range(3)]
    continued = []
    for tunnel in tunnels:
        continued.append(ContinuedFigures(tunnel, continued[-1] if continued else None))
    for count, which in enumerate(order):
        assert continued[-1].metrics(NONE).accepted == sum(one.accepted or 0 for one in tunnels) + 5000 * count
        assert not continued[-1].is_over
        tunnels[which].accepted += 5000  # the last bytes of its connections
        continued[which].end()
        tunnels[which].accepted, tunnels[which] = None, Counting(10**which)
    assert continued[-1].metrics(NONE._replace(accepted=3)).accepted == 15114
    assert continued[-1].recent([]) == []
    assert continued[-1].is_over
