"""``relay.engine.changes`` step by step, in a relay thread that notes what it is asked for."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from relay.access.options import check_policy
from relay.engine import changes
from relay.engine.options import TunnelOptions
from relay.engine.records import ConnectionState, ConnectionSummary
from relay.streams.checks import WARM_FOR
from relay.streams.listener import TunnelListener
from relay.testing import FakeListener

NOW = 1234.5
OLD, NEW = object(), object()
TIMES = {"timeout": 1.0, "connect_timeout": 2.0, "idle_timeout": 3.0, "linger": 4.0}


class Connection:
    """An open connection; notes its new idle time and its end."""

    def __init__(self, state=ConnectionState.OPEN, is_closed=False):
        self.state, self.is_closed, self.calls = state, is_closed, []
        self.summary = ConnectionSummary(None, 0.0)
        self.deadline = SimpleNamespace(change_idle=lambda *arguments: self.calls.append(("idle", *arguments)))

    def close(self, *arguments):
        self.calls.append(("close", *arguments))


class Acceptor:
    """Notes whether it accepts, and its end."""

    def __init__(self):
        self.calls = []

    def listen(self, enabled):
        self.calls.append(enabled)

    def close(self):
        self.calls.append("close")


class Relay:
    """A relay thread that runs everything at once."""

    name, is_closing = "it", False

    def __init__(self):
        self.calls, self.all_connections = [], [Connection(), Connection()]
        self.options = TunnelOptions(send_proxy="v1", admit=len, on_end=print)
        self.limits = SimpleNamespace(idle=9.0, handshake=1.0)
        self._statistics = SimpleNamespace(lifetime=None)
        self._acceptor = self.first = Acceptor()
        self._receive, self._make_send, self.run_in_thread = TunnelListener(), OLD, lambda call: call()
        self._connector = SimpleNamespace(
            source=None,
            set_factory=self.note("set_factory"),
            keep_warm=self.note("keep_warm"),
            submit=lambda job: job(),
        )
        self.entrance = SimpleNamespace(
            policy=check_policy(admit=lambda identity: True, deny=["10.0.0.0/8"]),
            set_policy=self.note("set_policy"),
            set_header=self.note("set_header"),
            set_rules=self.note("set_rules"),
            serve_queue=self.note("serve_queue"),
        )
        self._generations = SimpleNamespace(begin=self.note("begin"))
        self._set_limit, self.update_listening = self.note("set_limit"), self.note("update_listening")
        self.start_close = self.note("start_close")

    def note(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))

    def _make_acceptor(self, receive):
        self.calls.append(("make_acceptor", receive))
        return Acceptor()

    def named(self, name):
        """Return the arguments of the only call of this name."""
        (call,) = [call for call in self.calls if call[0] == name]
        return call[1:]


@pytest.fixture
def relay(monkeypatch):
    thread = Relay()
    monkeypatch.setattr(changes, "time", SimpleNamespace(monotonic=lambda: NOW))
    monkeypatch.setattr(changes, "introduce_probes", thread.note("introduce_probes"))
    monkeypatch.setattr(changes, "close_factory", thread.note("close_factory"))

    def adapt(of, acceptor):
        thread.note("adapt_acceptor")(of, acceptor)
        return acceptor

    monkeypatch.setattr(changes, "adapt_acceptor", adapt)
    return thread


@pytest.fixture
def tunnel(relay):
    return SimpleNamespace(_relay=relay, name="it", _address=None)


def test_an_update_reaches_each_part(tunnel, relay):
    kept = relay.entrance.policy
    options = {"source": "127.0.0.2", "accept_proxy": ["127.0.0.1"], "send_proxy": "v2"}
    options["limit"] = [{"name": "five", "rate": "5/s"}]
    changes.update(tunnel, nconnect=7, **TIMES, warm=3, warm_for=8.0, **options)
    limits = relay.limits
    assert (limits.lifetime, limits.connect, limits.idle, limits.linger) == (1.0, 2.0, 3.0, 4.0)
    assert relay._statistics.lifetime == 1.0
    assert relay.named("set_limit") == (7,)
    assert [connection.calls for connection in relay.all_connections] == [[("idle", 3.0, NOW)]] * 2
    assert relay.named("adapt_acceptor") == (relay, relay.first)
    (policy,) = relay.named("set_policy")
    expected = check_policy(limit=options["limit"], accept_proxy=options["accept_proxy"])
    for name in ("limits", "accept_proxy"):
        assert repr(getattr(policy, name)) == repr(getattr(expected, name))
    assert (policy.rules, policy.admit) == (kept.rules, kept.admit)
    assert relay.named("set_header") == ("v2",)
    assert relay.named("set_factory") == (OLD, "127.0.0.2")
    assert relay.named("introduce_probes") == (OLD, "v2")
    assert (relay.options.nconnect, relay.options.warm, relay.options.name) == (7, 3, "it")
    assert (relay.options.admit, relay.options.on_end) == (len, print)
    assert relay.named("keep_warm") == (3, 8.0)
    assert relay.named("serve_queue") == (NOW,)
    assert relay.calls[-1] == ("update_listening",)


def test_an_update_changes_only_what_is_different(tunnel, relay):
    changes.update(tunnel, nconnect=-1, **TIMES | {"idle_timeout": 9.0})
    assert [connection.calls for connection in relay.all_connections] == [[], []]
    assert "set_factory" not in [call[0] for call in relay.calls]
    assert relay.named("keep_warm") == (0, WARM_FOR)


def test_the_time_for_a_handshake_is_the_listeners(tunnel, relay):
    changes.update(tunnel, nconnect=-1, **TIMES)
    assert relay._receive.handshake_timeout == relay.limits.handshake == 1.0


def states(relay):
    """Give the connections states with and without a route; return those with one."""
    relay.all_connections = [Connection(state) for state in ConnectionState]
    without = ConnectionState.REQUESTING, ConnectionState.ADMITTING, ConnectionState.QUEUED
    return [one for one in relay.all_connections if one.state not in without]


def test_another_route(tunnel, relay):
    routed = states(relay)
    changes.reroute(tunnel, NEW, 5.0, "127.0.0.2", 2.0)
    assert relay._make_send is NEW
    assert relay.named("set_factory") == (NEW, "127.0.0.2")
    assert relay.named("introduce_probes") == (NEW, "v1")
    retired, over, drain, spread = relay.named("begin")
    assert (retired, drain, spread) == (routed, 5.0, 2.0)
    over()
    assert relay.calls[-1] == ("close_factory", OLD, "it")


def test_another_route_without_its_options(tunnel, relay):
    changes.reroute(tunnel, NEW, None)
    assert relay.named("set_factory") == (NEW, None)
    assert relay.named("begin")[2:] == (None, 0.0)


def test_a_tunnel_that_is_closing_closes_the_new_route(tunnel, relay):
    relay.is_closing = True
    changes.reroute(tunnel, NEW, None)
    assert relay.calls == [("close_factory", NEW, "it")]


@pytest.mark.parametrize(("more", "spread"), [((), 0.0), ((2.0,), 2.0)])
def test_another_listener(tunnel, relay, more, spread):
    routed, listener = states(relay), FakeListener()
    changes.relisten(tunnel, listener, 5.0, *more)
    assert relay._receive.given is listener
    assert relay.named("make_acceptor") == (relay._receive,)
    assert relay.named("begin") == (routed, None, 5.0, spread)
    assert relay.first.calls == [False, "close"]


def test_no_listener(tunnel, relay):
    changes.listen_nowhere(tunnel)
    assert relay._receive.listening is None
    assert relay.named("begin") == (relay.all_connections, None, None, 0.0)
    assert relay.first.calls == [False, "close"]


@pytest.mark.parametrize(("more", "seconds"), [((), WARM_FOR), ((8.0,), 8.0)])
def test_another_number_of_warm_streams(tunnel, relay, more, seconds):
    changes.keep_warm(tunnel, 3, *more)
    assert relay.calls == [("keep_warm", 3, seconds)]


@pytest.mark.parametrize(("options", "spread"), [({}, 0.0), ({"spread": 2.0}, 2.0)])
def test_all_at_once(tunnel, relay, options, spread):
    listener = FakeListener()
    limits = {"nconnect": 7, **TIMES, "source": "127.0.0.2"}
    tune = relay.note("tune")
    changes.replace(tunnel, limits, tune, make_send=NEW, receive=listener, drain=5.0, **options)
    begun = [call[2:] for call in relay.calls if call[0] == "begin"]
    assert [(drain, of) for _, drain, of in begun] == [(5.0, spread)] * 2
    factories = [call[1:] for call in relay.calls if call[0] == "set_factory"]
    assert factories == [(NEW, "127.0.0.2")] * 2
    adapted = [call[1:] for call in relay.calls if call[0] == "adapt_acceptor"]
    assert adapted[-1] == (relay, relay._acceptor)
    assert relay._receive.given is listener
    assert relay._receive.handshake_timeout == 1.0
    assert relay.first.calls == [False, "close"]


def test_a_replacement_of_the_limits_only(tunnel, relay):
    changes.replace(tunnel, {"nconnect": 7, **TIMES}, relay.note("tune"))
    assert relay.calls[0] == ("tune",)
    assert relay.first.calls == []
    assert relay._make_send is OLD


def test_a_tunnel_that_is_closing_closes_what_should_replace_something(tunnel, relay):
    relay.is_closing = True
    listener = FakeListener()
    ended = []
    listener.close = lambda: ended.append(True)
    changes.replace(tunnel, {}, relay.note("tune"), make_send=NEW, receive=listener)
    assert relay.calls == [("close_factory", NEW, "it")]
    assert ended == [True]


def test_a_reset_of_those_that_are_meant(tunnel, relay):
    relay.all_connections = [meant, other, over] = [Connection(), Connection(), Connection(is_closed=True)]
    changes.reset(tunnel, lambda summary: summary in (meant.summary, over.summary))
    assert (meant.calls, other.calls, over.calls) == ([("close", "killed", NOW)], [], [])


@pytest.mark.parametrize(("more", "spread"), [((), 0.0), ((2.0,), 2.0)])
def test_a_close_that_does_not_wait(tunnel, relay, more, spread):
    closed = relay.note("closed")
    changes.start_close(tunnel, 0, closed, *more)
    assert relay.calls == [("start_close", 0, closed, spread)]


@pytest.mark.parametrize(("given", "drain"), [(5.0, 5.0), (math.inf, None)])
def test_the_time_of_a_close(tunnel, relay, given, drain):
    changes.start_close(tunnel, given, None)
    assert relay.named("start_close") == (drain, None, 0.0)
    with pytest.raises(ValueError, match="^drain: "):
        changes.start_close(tunnel, -1.0, None)
