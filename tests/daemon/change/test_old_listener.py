"""A listener that closes for another one, and opens again; the end of the session under one."""

import socket
from types import SimpleNamespace

import pytest
from helpers import is_gone

from relay.addresses.parse import parse_listen, parse_target
from relay.daemon.change.old_listener import OldListener, end_sessions
from relay.daemon.member import Member
from relay.daemon.options import Options
from relay.daemon.plan import make_plan
from relay.daemon.preflight import Preflight
from relay.streams.listener import TunnelListener


@pytest.fixture
def told():
    """The names of the tunnels whose listener has closed."""
    return []


@pytest.fixture
def member(reserved):
    """A tunnel that listens at a port of its own."""
    plan = make_plan(parse_listen(f"127.0.0.1:{reserved}"), parse_target("127.0.0.1:1"), Options(), name="one")
    made = Member(plan)
    made.on_opened(plan.open(Preflight(names=False)))
    yield made
    made.close()


@pytest.fixture
def old(member, told):
    return OldListener(member, told.append)


def at_once(function):
    return function()


def test_it_closes_once_and_opens_again_in_the_main_thread(old, told, reserved):
    calls = []

    def call(function):
        calls.append(function)
        function()

    place = "127.0.0.1", reserved
    assert old.restore(call) == "" and not calls, "it has not closed"
    for _ in range(2):
        old.vacate()
    assert told == ["one"] and is_gone(place)
    assert old.restore(call) == "" and len(calls) == 1
    assert old.restore(call) == "" and len(calls) == 1
    assert not is_gone(place)


def test_one_that_cannot_come_back_is_told_and_may_come_back_later(old, reserved):
    old.vacate()
    with socket.create_server(("127.0.0.1", reserved)):
        said = old.restore(at_once)
    assert said.startswith("one: cannot listen again: 127.0.0.1:") and "Address already in use" in said
    assert old.restore(at_once) == "" and not old.is_vacant


def test_a_listener_is_closed_that_the_tunnel_cannot_take(old, reserved):
    """It would be in the way of the next try."""

    def refuse(function):
        raise RuntimeError("can't start new thread")

    old.vacate()
    assert old.restore(refuse) == "one: cannot listen again: can't start new thread"
    assert is_gone(("127.0.0.1", reserved))


@pytest.mark.parametrize(
    ("address", "remedy"), [("/run/x.sock", "run relay ctl upgrade"), (("127.0.0.1", 80), "restart relay")]
)
def test_workers_in_the_way_are_named_with_what_helps(address, remedy):
    tunnel = SimpleNamespace(name="one", address=address)
    words = f"^the workers of one listen at an address that has to be free first; {remedy}$"
    with pytest.raises(ValueError, match=words):
        OldListener(SimpleNamespace(has_opened=True, relay=tunnel)).vacate()


class Ending(TunnelListener):
    """A tunnel whose session ends with its last connection."""

    has_session = True

    def __init__(self, clock, name, drain, ends_at=None):
        self.plan = SimpleNamespace(options=SimpleNamespace(drain=drain))
        self.receive = self.relay = self
        self.killed = None
        self._clock, self._name, self._ends_at = clock, name, ends_at

    def join(self, seconds):
        end = self._ends_at if self.killed is None else self.killed
        until = self._clock.now + seconds
        self._clock.now = until if end is None else min(max(end, self._clock.now), until)

    def connections(self):
        is_open = self._ends_at is None or self._ends_at > self._clock.now
        return [SimpleNamespace(id=self._name)] if is_open else []

    def kill(self, number):
        self.killed = self._clock.now


def test_sessions_end_side_by_side(monkeypatch):
    """Clients wait meanwhile, and so does the process that is to take over."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("relay.daemon.change.old_listener.time.monotonic", lambda: clock.now)
    busy = [Ending(clock, name, drain) for name, drain in (("a", 9.0), ("b", 3.0), ("c", 99.0), ("d", 9.0))]
    done = Ending(clock, "e", 99.0, ends_at=1.0)
    end_sessions([*busy, done])
    assert [each.killed for each in (*busy, done)] == [9.0, 3.0, 30.0, 9.0, None]
    assert clock.now == 30.0
