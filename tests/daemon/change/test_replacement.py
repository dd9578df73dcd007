"""The change of one tunnel, before anything is touched: what it opens, what is in its way, and how that is undone."""

import os
import threading
from types import SimpleNamespace

import pytest
from helpers import WAIT, makes

from relay.carriers.link import CarrierState
from relay.config import read
from relay.daemon.change.old_listener import OldListener
from relay.daemon.change.replacement import Leaving, Replacement
from relay.daemon.member import MemberState
from relay.daemon.options import Options
from relay.daemon.plan_from_file import plans_of
from relay.daemon.preflight import Preflight
from relay.daemon.probes import WarmUp
from relay.daemon.verdicts import Change, Verdict, compare, with_files
from relay.engine.acceptor import own_listener
from relay.streams.dialer import Dialer


@pytest.fixture
def load(tmp_path):
    """Returns the plan of the only tunnel of a text."""

    def work(listen, target="127.0.0.1:1", *more):
        path = tmp_path / "relay.toml"
        path.touch(0o600)
        path.write_text("\n".join(["[tunnels.one]", f'listen = "{listen}"', f'target = "{target}"', *more, ""]))
        config = read(str(path))
        assert config.problems.in_order() == []
        (plan,) = plans_of(config, Options())
        return with_files(plan)

    return work


class Member:
    """A tunnel that runs; its listener is one of the test."""

    def __init__(self, plan, receive=None, state=MemberState.LISTENING):
        self.plan, self.state = plan, state
        self.has_opened = receive is not None
        if receive is not None:
            self.receive, self.make_send = own_listener(receive), Dialer("one")
            self.relay = SimpleNamespace(address=receive.getsockname())


@pytest.fixture
def made():
    """Makes changes; their listeners and factories are closed with the test."""

    def make(old, new, receive=None, state=MemberState.LISTENING):
        (change,) = compare([old] if old else [], [new] if new else [])
        return Replacement(change, new, Member(old, receive, state) if old else None)

    yield from makes(make, lambda each: each.discard())


def ready(change, everyone=()):
    change.prepare(Preflight(names=False), Leaving([*everyone, change]))
    change.wait()
    return change


def test_what_stays_and_what_goes_needs_nothing(made, load):
    for change in (made(load(":0"), load(":0")), made(load(":0"), None)):
        ready(change)
        assert (change.error, change.bound, change.make_send, change.is_postponed) == (None, None, None, False)
    assert [change.leaves, change.listens_anew] == [True, False]


def test_a_new_tunnel_listens_before_it_is_opened_and_undo_closes_it(made, load, reserved):
    change = ready(made(None, load(f":{reserved}")))
    assert change.verdict is Verdict.NEW and change.listens_anew
    assert change.bound.receive.getsockname()[1] == reserved
    change.discard()
    assert change.bound.receive.listening.fileno() < 0


def test_nothing_stays_open_for_a_tunnel_that_has_ended_since_the_reload_began(made, load, listener, reserved):
    closed = []
    route = ready(made(load(":0"), load(":0", "127.0.0.1:2"), listener))
    route.make_send.close = lambda: closed.append(route)
    moved = ready(made(load(":0"), load(f":{reserved}"), listener))
    for change in (route, moved):
        change.member.state = MemberState.DRAINING
        change.apply()
        assert not change.is_postponed
    assert closed == [route] and moved.bound.receive.listening.fileno() < 0


def test_what_cannot_be_opened_is_an_error(made, load, listener):
    change = ready(made(None, load(f":{listener.getsockname()[1]}")))
    assert "Address already in use" in str(change.error)
    change = ready(made(None, load(":0", "exec:no-such-program-anywhere")))
    assert "program not found" in str(change.error)


def test_the_port_that_the_system_chose_counts_as_the_address(made, load, listener):
    port = listener.getsockname()[1]
    old = made(load(":0"), None, listener)
    assert OldListener(old.member).address.port == port
    new = made(None, load(f":{port}"))
    assert not new.must_vacate(Leaving([old, new])), "it takes over the socket"
    ready(new, [old])
    assert new.error is None
    assert new.bound.receive.getsockname() == listener.getsockname()
    assert new.bound.receive.listening.fileno() != listener.fileno()


@pytest.mark.parametrize(
    ("old", "new", "vacates"),
    [
        ("127.0.0.1:{}", "0.0.0.0:{}", True),
        ("127.0.0.1:{}", "tls://127.0.0.1:{}?cert=a&key=b", False),
        ("127.0.0.1:{}", "127.0.0.2:{}", False),
        ("unix:///tmp/{}", "unix:///tmp/{}", True),
        ("ssh://a?listen=:{}", "ssh://a?listen=:{}", True),
        ("ssh://a?listen=:{}", "ssh://b?listen=:{}", False),
    ],
)
def test_an_old_listener_that_excludes_the_new_one_closes_first(made, load, old, new, vacates):
    gone, other = made(load(old.format(8080)), None), made(None, load(new.format(8080)))
    assert other.must_vacate(Leaving([gone, other])) is vacates
    stays = made(load(old.format(8080)), load(old.format(8080)))
    assert not other.must_vacate(Leaving([stays, other])), "what stays is not closed"


def test_tls_keys_change_at_the_same_address_in_place(made, load, listener):
    change = made(load("tls://:0?cert=a&key=b"), load("tls://:0?cert=c&key=b"), listener)
    assert change.verdict is Verdict.MOVED
    assert not change.listens_anew and not change.leaves


class Attempt:
    """The call that opens a listener, of the test."""

    def __init__(self, opening, outcome, postponed):
        self.report_outcome, self.report_postponed = outcome, postponed
        self.given_up = False

    def outcome(self):
        raise OSError("it is over")

    def give_up(self):
        self.given_up = True


@pytest.fixture
def waiting(made, load, monkeypatch):
    """A change whose listener is under way."""
    monkeypatch.setattr("relay.daemon.change.replacement.BackgroundCall", Attempt)
    change = made(None, load("ssh://me@nowhere"))
    change.prepare(Preflight(names=False), Leaving([change]))
    return change


def test_a_listener_that_waits_for_its_server_counts_as_open_and_its_events_are_passed_on(waiting):
    problem, events = OSError("no route"), []
    waiting._opening._call.report_postponed(problem)
    waiting.wait()
    assert waiting.is_postponed
    waiting.hand_over(lambda: events.append("over"), events.append)
    assert events == [problem], "that of before"
    waiting._opening._call.report_postponed(later := OSError("still no route"))
    waiting._opening._call.report_outcome()
    assert events == [problem, later, "over"]
    waiting.wait()
    assert str(waiting.error) == "it is over" and not waiting.is_postponed


def test_an_outcome_from_before_is_passed_on_too(waiting):
    events = []
    waiting._opening._call.report_outcome()
    waiting.hand_over(lambda: events.append("over"), events.append)
    assert events == ["over"]


def test_undo_gives_up_what_waits(waiting):
    call = waiting._opening._call
    waiting.discard()
    assert call.given_up


def test_wait_ends_with_the_first_event(waiting):
    settled = threading.Thread(target=waiting.wait)
    settled.start()
    waiting._opening._call.report_postponed(OSError("no route"))
    settled.join(WAIT)
    assert not settled.is_alive()


def test_a_change_is_told_in_one_line():
    assert str(Change("db", Verdict.TUNED, ("nconnect", "linger"))) == "db: tuned (nconnect, linger)"


# -- the hops of a new route -------------------------------------------------------------------------------------------


class Hops(Dialer):
    """A factory whose hops are in the state that the test says."""

    state = "connecting"

    def __init__(self, state="connecting"):
        self.state = state
        self.watchers = []
        self.subscribe = self.watchers.append


@pytest.mark.parametrize("state", ["up", "backing off", "failed"])
def test_hops_that_are_not_connecting_are_not_waited_for(state):
    WarmUp("one", Hops(state), WAIT).wait()


@pytest.mark.parametrize(
    ("state", "error", "text"),
    [
        (CarrierState.UP, None, ""),
        (CarrierState.BACKING_OFF, OSError("h: refused"), "one: its new route is not up yet: h: refused; new clients"),
        (None, None, "one: its new route is not up yet: not connected in time; new clients wait for it"),
    ],
)
def test_a_new_route_is_waited_for_until_its_first_outcome(state, error, text, caplog):
    hops = Hops()
    warm_up = WarmUp("one", hops, 0.0 if state is None else WAIT)
    if state is not None:
        hops.watchers[0](CarrierState.CONNECTING, None)
        hops.watchers[0](state, error)
        hops.watchers[0](CarrierState.CONNECTING, OSError("later"))
    warm_up.wait()
    assert caplog.text.count("not up yet") == bool(text)
    assert text in caplog.text


class Ways(Dialer):
    """A factory by several ways."""

    state = "connecting"

    def __init__(self, *states):
        self.alternatives = [Hops(state) for state in states]
        self.state = states[0]

    def subscribe(self, watcher):
        for way in self.alternatives:
            way.subscribe(watcher)


FAILURE = (CarrierState.FAILED, OSError("h: refused"))


@pytest.mark.parametrize(
    ("states", "outcomes", "problem"),
    [
        (["connecting", "connecting"], [(0, FAILURE), (1, (CarrierState.UP, None))], ""),
        (["failed", "connecting"], [(1, (CarrierState.UP, None))], ""),
        (["connecting", "up"], [], ""),
        (["connecting", "connecting"], [(0, FAILURE), (0, FAILURE)], "h: refused"),
        (["connecting", "connecting"], [(0, FAILURE), (1, (CarrierState.FAILED, OSError("b")))], "h: refused"),
    ],
)
def test_one_of_several_ways_is_enough_and_all_are_waited_for(states, outcomes, problem, caplog):
    ways = Ways(*states)
    warm_up = WarmUp("one", ways, 0.0 if outcomes == [(0, FAILURE)] * 2 else WAIT)
    for number, (state, error) in outcomes:
        for watcher in ways.alternatives[number].watchers:
            watcher(state, error)
    warm_up.wait()
    assert [record.getMessage() for record in caplog.records] == (
        [f"one: its new route is not up yet: {problem}; new clients wait for it"] if problem else []
    )


@pytest.mark.parametrize(("target", "begins"), [("i2p://a.i2p", True), (f"i2p://a.i2p?keys={os.devnull}", False)])
def test_a_session_of_the_same_keys_cannot_begin_before_the_old_one_has_ended(made, load, listener, target, begins):
    """So clients wait for it as they did for the first one."""
    change = made(load(":0"), load(":0", f"{target}{'&' if '?' in target else '?'}sam=127.0.0.1:1"), listener)
    change.member.make_send = SimpleNamespace(state="up")
    change.prepare(Preflight(names=False), Leaving([change]))
    assert change.error is None or not begins
    assert (change._warm_up is not None) is begins
