"""``relay.engine.connector`` step by step: how each kind of stream is begun, and where the result of a call goes."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import time
from types import SimpleNamespace

import pytest
from notes import Notes

import relay
from relay.engine import connector as module
from relay.engine.attempt import Plan
from relay.engine.connector import _YOUNG, Connector, _deadline, _dispose, close_factory
from relay.engine.records import ConnectionSummary
from relay.engine.workspace import Workspace
from relay.eventloop.loop import Timers
from relay.streams import peer_source
from relay.streams.connect import SocketDialer
from relay.streams.dialer import Dialer

NOW = 1234.5
PEER = ("192.0.2.7", 5)


class Owner(Notes):
    """The relay thread, whose loop calls at once while it runs."""

    name, listening, has_spare = "it", True, False

    def __init__(self):
        super().__init__()
        self.is_running = True
        self.loop = SimpleNamespace(timers=Timers(), call=self._call)
        self.workspace = Notes()
        self.workspace.log_problem = Workspace(self.loop, None).log_problem
        self.entrance = SimpleNamespace(sender=None)

    def _call(self, function):
        if self.is_running:
            function()
        return self.is_running

    def release_spare_fd(self):
        self.calls.append(("release_spare_fd",))
        return self.has_spare


class Workers(Notes):
    """The threads; the test runs the jobs."""

    def __init__(self, loop, name):
        super().__init__()
        self.arguments, self.jobs = (loop, name), []

    def submit(self, job):
        self.jobs.append(job)

    def run(self):
        while self.jobs:
            self.jobs.pop(0)()


class Connection(Notes):
    """A connection without a stream."""

    pending = request = None

    def __init__(self, limit=30.0):
        super().__init__()
        self.summary = ConnectionSummary(PEER, NOW)
        self.deadline = SimpleNamespace(limits=SimpleNamespace(connect_limit=limit))

    def wait_for_target(self, pending, now):
        self.pending = pending
        self.calls.append(("wait_for_target", now))

    def source(self):
        return None


class Attempt(Notes):
    """An attempt that the test ends."""

    is_warm = False
    cancel = None

    def __init__(self, connector, connection, plan, deadline):
        super().__init__()
        self.connector, self.connection, self.plan, self.deadline = connector, connection, plan, deadline

    def is_awaited(self):
        return self.connection.pending is self


@pytest.fixture
def owner(monkeypatch):
    monkeypatch.setattr(module, "Workers", Workers)
    monkeypatch.setattr(module, "Attempt", Attempt)
    return Owner()


@pytest.fixture
def make(owner):
    return lambda factory=lambda: None, source=None: Connector(owner, factory, source)


def test_it_begins_with_the_things_of_its_owner(owner, make):
    one = make()
    assert (one.loop, one.workspace, one.warm, one.calls) == (owner.loop, owner.workspace, None, 0)
    assert one.workers.arguments == (owner.loop, "it connector")
    assert one.warm_figures() is None
    assert one.source is None
    one.make_room(NOW)
    one.after_fork()
    assert owner.workspace.calls == [("abandon",)]


def test_its_lookups_use_its_threads(make):
    one = make()
    one._lookups.find("db", list, None, lambda found, now: None)
    assert len(one.workers.jobs) == 1
    assert one._lookups._loop is one.loop


# -- the plan ------------------------------------------------------------------------------------------------------


class At(Dialer):
    """A dialer that notes where it is."""

    def on(self, home):
        other = At(self.target)
        other.home = home
        return other


class Selecting(At):
    """A dialer that selects another one for each request."""

    def select(self, request):
        return self if request is None else At(request)

    def on(self, home):
        return self


def test_the_plan_of_a_factory(owner, make):
    one = make(At("db:5432"))
    assert one._plan.dialer.home is owner.workspace
    assert one._plan_for is None


def test_a_factory_that_selects_has_a_plan_for_each_request(owner, make):
    factory = Selecting("any")
    one, connection = make(factory), Connection()
    assert one._plan_for(connection) is one._plan
    connection.request = "db:5432"
    plan = one._plan_for(connection)
    assert (plan.target, plan.dialer.home) == ("db:5432", owner.workspace)


def test_a_source_binds_the_factory(make, monkeypatch):
    asked = []
    monkeypatch.setattr(peer_source, "bound_to", lambda factory, source: asked.append((factory, source)) or At("bound"))
    factory = At("db:5432")
    one = make(factory, "127.0.0.2")
    assert asked == [(factory, "127.0.0.2")]
    assert (one.source, one._plan.target, one._plan_for, one._plan.needs_client) == ("127.0.0.2", "bound", None, False)


def test_the_source_of_each_client_has_a_plan_of_its_own(owner, make, monkeypatch):
    class Peers:
        def dialer_for(self, identity):
            return At(f"for {identity.host}")

    monkeypatch.setattr(peer_source, "PeerSource", Peers)
    monkeypatch.setattr(peer_source, "bound_to", lambda factory, source: Peers())
    one = make(At("db:5432"), "client")
    assert (one._plan.target, one._plan.needs_client) == ("db:5432", True)
    plan = one._plan_for(Connection())
    assert (plan.target, plan.dialer.home) == ("for 192.0.2.7", owner.workspace)


def test_warm_streams_get_the_new_plan(make):
    one = make()
    warm = one.warm = Notes()
    before = time.monotonic()
    one.set_factory(At("db:5432"), None)
    plan, now = warm.only("change_plan")
    assert plan is one._plan
    assert before <= now <= time.monotonic()


# -- warm streams --------------------------------------------------------------------------------------------------


class Pool(Notes):
    """The warm streams; one is ready or not."""

    ready = True

    def __init__(self, *arguments):
        super().__init__()
        self.arguments = arguments

    def give(self, connection, now):
        self.calls.append(("give", connection, now))
        return self.ready

    def figures(self):
        return "figures"


def test_a_pool_is_made_for_the_first_number(owner, make, monkeypatch):
    monkeypatch.setattr("relay.engine.warm_pool.WarmPool", Pool)
    one = make()
    one.keep_warm(0, 30.0)
    assert one.warm is None
    before = time.monotonic()
    one.keep_warm(2, 30.0)
    pool = one.warm
    assert pool.arguments == (one, owner, one._plan)
    count, seconds, now = pool.only("change")
    assert (count, seconds) == (2, 30.0)
    assert before <= now <= time.monotonic()
    one.keep_warm(0, 20.0)
    assert one.warm is pool
    assert pool.calls[1][:3] == ("change", 0, 20.0)
    assert one.warm_figures() == "figures"
    one.make_room(NOW)
    one.after_fork()
    assert pool.calls[2:] == [("make_room", NOW), ("after_fork",)]


def test_a_client_gets_a_stream_that_is_ready(make):
    one, connection = make(), Connection()
    one.warm = Pool()
    one.connect(connection, NOW)
    assert one.warm.calls == [("give", connection, NOW)]
    assert connection.calls == []
    one.warm.ready = False
    one.connect(connection, NOW)
    assert connection.pending is not None


# -- a connect -----------------------------------------------------------------------------------------------------

ENDPOINT = SimpleNamespace(family=socket.AF_INET)


def addressed(count=1, literal=True):
    return SocketDialer("db:5432", lambda: [ENDPOINT] * count, literal=literal)


@pytest.fixture
def opened(monkeypatch):
    """The outcomes of the next connects, and those that were begun."""
    found = SimpleNamespace(outcomes=[], begun=[])

    def open_socket(endpoint, kind):
        found.begun.append((endpoint, kind))
        outcome = found.outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    monkeypatch.setattr(module, "open_socket", open_socket)
    return found


def test_a_connect_that_is_over_at_once(owner, make, opened):
    opened.outcomes = [("socket", 0)]
    one, connection = make(addressed()), Connection()
    one.connect(connection, NOW)
    assert connection.calls == [("open", "socket", None, owner.workspace, NOW)]
    assert connection.summary.target == "db:5432"
    assert opened.begun == [(ENDPOINT, socket.SocketType)]


@pytest.mark.parametrize("status", [errno.EINPROGRESS, errno.EAGAIN])
def test_a_connect_that_is_under_way(make, opened, status):
    opened.outcomes = [("socket", status)]
    one, connection = make(addressed()), Connection()
    one.connect(connection, NOW)
    assert connection.calls == [("wait_for_target", NOW), ("watch_client",)]
    attempt = connection.pending
    assert (attempt.connector, attempt.connection, attempt.plan, attempt.deadline) == (
        one,
        connection,
        one._plan,
        NOW + 30.0,
    )
    assert attempt.calls == [("go_on", "socket", ENDPOINT, status, NOW)]


def test_a_connect_that_is_refused_at_once(make, opened, caplog):
    made = Notes()
    opened.outcomes = [(made, errno.ECONNREFUSED)]
    connection = Connection()
    make(addressed()).connect(connection, NOW)
    assert made.calls == [("close",)]
    assert connection.calls == [("fail", "refused", NOW)]
    text = "it: db:5432: connection refused; check that the service is running (client 192.0.2.7:5)"
    assert caplog.record_tuples == [("relay", logging.WARNING, text)]


def test_another_error_of_a_connect_has_the_words_of_the_system(make, opened, caplog):
    opened.outcomes = [(Notes(), errno.EHOSTDOWN)]
    make(addressed()).connect(Connection(), NOW)
    assert f"db:5432: {os.strerror(errno.EHOSTDOWN)}" in caplog.text


def test_a_connect_that_cannot_be_begun(make, opened, caplog):
    opened.outcomes = [OSError(errno.EACCES, "not allowed")]
    connection = Connection()
    make(addressed()).connect(connection, NOW)
    assert connection.calls == [("fail", "unreachable", NOW)]
    assert "db:5432: not allowed" in caplog.text


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("has_spare", [True, False])
def test_a_connect_gets_the_spare_descriptor(owner, make, opened, number, has_spare):
    owner.has_spare = has_spare
    opened.outcomes = [OSError(number, "none left"), ("socket", 0)]
    one = make(addressed())
    if has_spare:
        assert one.open(ENDPOINT) == ("socket", 0)
        assert opened.begun == [(ENDPOINT, socket.SocketType)] * 2
    else:
        with pytest.raises(OSError, match="none left"):
            one.open(ENDPOINT)


def test_another_error_does_not_take_it(owner, make, opened):
    owner.has_spare = True
    opened.outcomes = [OSError(errno.EACCES, "not allowed")]
    with pytest.raises(OSError, match="not allowed"):
        make(addressed()).open(ENDPOINT)
    assert owner.calls == []


# -- an attempt ----------------------------------------------------------------------------------------------------


def begun(make, factory, **figures):
    """Connect a connection; return the connector, the connection and its attempt."""
    one, connection = make(factory), Connection()
    for name, value in figures.items():
        setattr(connection, name, value)
    one.connect(connection, NOW)
    return one, connection, connection.pending


def test_several_addresses_are_raced(make):
    one, connection, attempt = begun(make, addressed(2))
    assert attempt.calls == [("race", [ENDPOINT] * 2, NOW)]
    assert connection.calls == [("wait_for_target", NOW), ("watch_client",)]
    assert (attempt.connector, attempt.plan, attempt.deadline) == (one, one._plan, NOW + 30.0)
    assert connection.summary.target == "db:5432"


def test_a_name_is_looked_up_and_its_client_watched_after_a_moment(make):
    one, _, attempt = begun(make, dialer := addressed(literal=False))
    assert attempt.calls == [("look_up", one._lookups, dialer)]
    assert one._young == [attempt]
    assert one._watch.due == NOW + _YOUNG


def test_a_dialer_dials(owner, make):
    one, _, attempt = begun(make, At("db:5432"))
    assert attempt.calls == [("dial", one._plan.dialer, NOW)]
    assert one._plan.dialer.home is owner.workspace


@pytest.mark.parametrize("is_client", [True, False])
def test_a_dialer_may_introduce_its_client(owner, make, monkeypatch, is_client):
    class Sender:
        def over(self, dialer, connection):
            return ("introducing", dialer, connection)

    monkeypatch.setattr(module, "Connection", Connection if is_client else Owner)
    owner.entrance.sender = Sender()
    one, connection, attempt = begun(make, At("db:5432"))
    dialer = one._plan.dialer
    assert attempt.calls == [("dial", ("introducing", dialer, connection) if is_client else dialer, NOW)]


@relay.nonblocking
def at_once(peer):
    return peer


def test_a_factory_that_does_not_block_is_called_at_once(make, monkeypatch):
    monkeypatch.setattr(module, "as_stream", lambda made: ("stream", made))
    one, connection, attempt = begun(make, at_once)
    assert attempt.calls == [("finished", ("stream", PEER), NOW)]
    assert ("watch_client",) in connection.calls
    assert one.workers.jobs == []


def test_a_request_is_the_target_of_a_factory_that_asks_for_it(make):
    request = object()
    _, connection, _ = begun(make, lambda destination: None, request=request)
    assert connection.summary.target is request
    assert ("watch_client",) in connection.calls, "its early bytes were read"
    _, connection, _ = begun(make, lambda: None, request=request)
    assert connection.summary.target is None


def test_a_client_of_its_own_plan(make):
    one, connection = make(), Connection()
    plan = Plan(At("its own"))
    one._plan_for = lambda of: plan if of is connection else None
    one.connect(connection, NOW)
    assert connection.pending.plan is plan


# -- calls ---------------------------------------------------------------------------------------------------------


def test_a_call_gets_what_it_names(make, monkeypatch):
    given = {}

    def factory(peer, identity, destination, deadline, cancel):
        given.update(peer=peer, identity=identity, destination=destination, deadline=deadline, cancel=cancel)

    cancels = []
    monkeypatch.setattr(module, "Cancellation", lambda: cancels.append(Notes()) or cancels[-1])
    one, _, attempt = begun(make, factory, request="db:5432")
    (cancel,) = cancels
    assert attempt.cancel is cancel
    one.workers.run()
    identity = relay.Identity("tcp", "192.0.2.7", *PEER)
    expected = {"peer": PEER, "identity": identity, "destination": "db:5432", "deadline": NOW + 30.0, "cancel": cancel}
    assert given == expected
    assert cancel.calls == [("close",)]


def test_a_call_that_names_nothing_gets_nothing(make):
    calls = []
    one, _, attempt = begun(make, lambda: calls.append(True))
    assert one._bound(attempt) is attempt.plan.factory
    one.workers.run()
    assert calls == [True]
    assert attempt.cancel is None


def test_a_call_returns_its_stream_to_the_relay_thread(make, ends):
    one, _, attempt = begun(make, lambda: ends[0])
    assert one.calls == 1
    before = time.monotonic()
    one.workers.run()
    ((name, stream, now),) = attempt.calls
    assert (name, stream.socket) == ("finished", ends[0])
    assert before <= now <= time.monotonic()
    assert one.calls == 0


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit()])
def test_a_call_that_raises_ends_its_connection_only(make, error):
    def factory():
        raise error

    one, _, attempt = begun(make, factory)
    one.workers.run()
    assert attempt.calls[0][:2] == ("finished", error)


def test_a_bug_in_what_takes_the_stream_is_a_failure(make):
    one, _, attempt = begun(make, lambda: None)
    error = ValueError("a bug")

    def finished(outcome, now):
        raise error

    attempt.finished = finished
    before = time.monotonic()
    one.workers.run()
    ((name, found, now),) = attempt.calls
    assert (name, found) == ("failed", error)
    assert before <= now <= time.monotonic()


def test_a_stream_that_nothing_awaits_is_closed_elsewhere(make, ends):
    closed = []
    one, connection, attempt = begun(make, lambda: relay.Stream(ends[0], on_close=lambda: closed.append(True)))
    connection.pending = None
    one.workers.jobs.pop(0)()
    assert (attempt.calls, closed, len(one.workers.jobs)) == ([], [], 1)
    one.workers.run()
    assert closed == [True]


def test_an_error_that_nothing_awaits_is_nothing(make):
    one, connection, attempt = begun(make, lambda: 1 / 0)
    connection.pending = None
    one.workers.run()
    assert (attempt.calls, one.workers.jobs) == ([], [])


def test_a_call_of_a_warm_stream_keeps_no_client_out(make, monkeypatch):
    monkeypatch.setattr(Attempt, "is_warm", True)
    one, _, attempt = begun(make, lambda: None)
    assert (one.calls, attempt.plan.warm_calls) == (0, 1)
    one.begin(attempt, NOW)
    assert (one.calls, attempt.plan.warm_calls) == (0, 2)
    one.workers.run()
    assert (one.calls, attempt.plan.warm_calls) == (0, 0)


@pytest.mark.parametrize("listening", [True, False])
def test_the_end_of_a_call_makes_room_for_clients(owner, make, listening):
    one, _, _ = begun(make, lambda: None)
    owner.listening = listening
    one.workers.run()
    assert owner.calls == ([] if listening else [("update_listening",)])


def test_a_stream_after_the_end_of_the_loop_is_closed(owner, make, ends):
    closed = []
    one, _, attempt = begun(make, lambda: relay.Stream(ends[0], on_close=lambda: closed.append(True)))
    owner.is_running = False
    one.workers.run()
    assert (attempt.calls, closed) == ([], [True])
    _dispose(ValueError("no stream"))


def test_clients_of_calls_that_take_longer_are_watched(owner, make):
    one, connection, _ = begun(make, lambda: None)
    assert one._watch.due == NOW + _YOUNG
    other, gone = Connection(), Connection()
    for late in (other, gone):
        one.connect(late, NOW + _YOUNG / 2)
    assert one._watch.due == NOW + _YOUNG, "it is started once"
    gone.pending = None
    assert ("watch_client",) not in connection.calls
    owner.loop.timers.run(NOW + 1)
    assert connection.calls == [("wait_for_target", NOW), ("watch_client",)]
    assert ("watch_client",) in other.calls
    assert ("watch_client",) not in gone.calls
    assert one._watch.due == math.inf
    one._watch_clients(NOW)
    assert connection.calls.count(("watch_client",)) == 1


def test_a_job_that_raises_does_not_end_its_thread(make, caplog):
    one = make()

    def job():
        raise SystemExit

    one.submit(job)
    one.workers.run()
    assert caplog.messages == ["it: closing a stream failed"]
    assert "SystemExit" in caplog.text


# -- what is logged -------------------------------------------------------------------------------------------------


def test_a_failure_with_a_known_reason_is_a_warning(make, caplog):
    connection = Connection()
    make().failed(connection, relay.ConnectError("db:5432: not\nthere", reason="unreachable"), NOW)
    assert connection.calls == [("fail", "unreachable", NOW)]
    ((_, level, text),) = caplog.record_tuples
    assert (level, text) == (logging.WARNING, r"it: db:5432: not\nthere (client 192.0.2.7:5)")


@pytest.mark.parametrize("error", [relay.ConnectError("x" * 5000, reason="unreachable"), ValueError("x" * 5000)])
def test_a_long_error_is_cut_in_the_log(make, caplog, error):
    make().failed(Connection(), error, NOW)
    assert 2000 <= len(caplog.messages[0]) < 2100


class Failing(At):
    """A dialer that knows why it has no stream."""

    last_error = relay.ConnectError("the server does not answer")

    def on(self, home):
        return self


def test_why_there_was_no_stream_in_time_is_told_if_it_is_known(make, caplog):
    one = make(Failing("db:5432"))
    one.too_late(Connection(), one._plan)
    text = "it: db:5432: not connected in time: the server does not answer (client 192.0.2.7:5)"
    assert caplog.record_tuples == [("relay", logging.WARNING, text)]
    one.too_late(Connection(), Plan(lambda: None))
    assert len(caplog.messages) == 1


def test_a_stream_is_closed_by_the_relay_thread(owner, make):
    make().close_stream("stream", True)
    assert owner.calls == [("close_stream", "stream", True)]


@pytest.mark.parametrize(("limit", "deadline"), [(30.0, NOW + 30.0), (None, None)])
def test_the_deadline_counts_from_the_acceptance(limit, deadline):
    assert _deadline(Connection(limit)) == deadline


def test_a_factory_is_closed_if_it_can_be(caplog):
    closed = []
    close_factory(SimpleNamespace(close=lambda: closed.append(True)), "it")
    close_factory(SimpleNamespace(close="no function"), "it")
    close_factory(lambda: None, "it")
    close_factory(type("Factory", (), {"close": lambda: closed.append("of a class")}), "it")
    assert (closed, caplog.messages) == ([True], [])
    close_factory(SimpleNamespace(close=lambda: 1 / 0), "it")
    assert caplog.messages == ["it: closing the factory failed"]
    assert "ZeroDivisionError" in caplog.text
