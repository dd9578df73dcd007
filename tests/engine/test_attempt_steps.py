"""``relay.engine.attempt`` step by step: what an attempt begins, how it ends, and who learns of it."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from notes import Notes

import relay
from relay.engine import attempt as module
from relay.engine.attempt import Attempt, Plan, keywords_of
from relay.engine.records import ConnectionSummary
from relay.eventloop.poller import OUT
from relay.streams.connect import SocketDialer
from relay.streams.dialer import Dialer
from relay.streams.path import StreamPath

NOW = 1234.5
FAMILY = SimpleNamespace(family=socket.AF_INET)


class Loop(Notes):
    """The loop of the relay thread; another thread's calls wait until the test runs them."""

    def __init__(self):
        super().__init__()
        self.here, self.is_open, self.waiting, self.handlers = True, True, [], {}

    def is_here(self):
        return self.here

    def call(self, function):
        if self.is_open:
            self.waiting.append(function)
        return self.is_open

    def watch(self, descriptor, mask, handler):
        self.handlers[descriptor] = mask, handler

    def forget(self, descriptor):
        del self.handlers[descriptor]


class Connector(Notes):
    """The maker of attempts."""

    def __init__(self):
        super().__init__()
        self.loop, self.workspace = Loop(), object()


class Recipient(Notes):
    """The thing that the stream is for."""

    target = target_stream = request = None

    def __init__(self):
        super().__init__()
        self.summary, self.pending = ConnectionSummary(None, 0.0), None

    def source(self):
        return "its network"


@pytest.fixture
def connector():
    return Connector()


@pytest.fixture
def recipient():
    return Recipient()


@pytest.fixture
def make(connector, recipient):
    def made(factory=lambda: None, deadline=NOW + 10):
        one = recipient.pending = Attempt(connector, recipient, Plan(factory), deadline)
        return one

    return made


# -- the plan ---------------------------------------------------------------------------------------------------------


def with_keywords(a, peer, identity=None, *, destination, deadline=None, cancel):
    """All of them."""


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        (with_keywords, {"peer", "identity", "destination", "deadline", "cancel"}),
        (lambda peer, /: None, set()),
        (lambda *peer: None, set()),
        (lambda **cancel: None, set()),
        (lambda other: None, set()),
        (int, set()),
        (type("NoSignature", (), {"__signature__": "wrong", "__call__": lambda self: None})(), set()),
    ],
)
def test_the_keywords_of_a_factory(factory, names):
    assert keywords_of(factory) == names


class Plain(Dialer):
    """A dialer of one target."""

    def on(self, home):
        return ("at", home)


def test_the_plan_of_a_callable():
    plan = Plan(with_keywords)
    assert (plan.factory, plan.dialer, plan.endpoints, plan.endpoint) == (with_keywords, None, (), None)
    assert (plan.nonblocking, plan.target, plan.warm_calls, plan.selects) == (False, None, 0, False)
    assert plan.keywords == {"peer", "identity", "destination", "deadline", "cancel"}


def test_the_plan_of_a_dialer():
    dialer = Plain("db:5432")
    plan = Plan(dialer)
    assert (plan.dialer, plan.target, plan.keywords, plan.selects, plan.needs_client) == (
        dialer,
        "db:5432",
        frozenset(),
        False,
        False,
    )
    assert Plan(dialer, "home").dialer == ("at", "home")
    assert Plan(lambda: None, "home").dialer is None


def test_the_plan_of_addresses():
    one = SocketDialer("db:5432", lambda: [FAMILY], literal=True)
    assert (list(Plan(one).endpoints), Plan(one).endpoint) == ([FAMILY], FAMILY)
    two = SocketDialer("db:5432", lambda: [FAMILY, FAMILY], literal=True)
    assert (len(Plan(two).endpoints), Plan(two).endpoint) == (2, None)


def test_a_factory_may_say_that_it_does_not_block():
    factory = lambda: None  # noqa: E731  (it gets attributes)
    factory.nonblocking, factory.target = 1, "there"
    plan = Plan(factory)
    assert (plan.nonblocking, plan.target) == (True, "there")


class Selecting(Plain):
    """A dialer that selects another one for each client."""

    def select(self, request):
        return self


@pytest.mark.parametrize(
    ("factory", "options", "needs"),
    [
        (lambda: None, {}, False),
        (lambda deadline, cancel: None, {}, False),
        (lambda peer: None, {}, True),
        (lambda identity: None, {}, True),
        (lambda destination: None, {}, True),
        (lambda: None, {"per_client": True}, True),
        (Plain("a"), {}, False),
        (Selecting("a"), {}, True),
    ],
)
def test_a_stream_may_depend_on_its_client(factory, options, needs):
    assert Plan(factory, **options).needs_client is needs


# -- its end ----------------------------------------------------------------------------------------------------------


def test_an_attempt_begins_with_nothing(connector, recipient):
    plan = Plan(lambda: None)
    one = Attempt(connector, recipient, plan, None)
    assert (one.connection, one.plan, one.deadline, one.cancel, one.is_warm) == (recipient, plan, None, None, False)
    assert not one.is_awaited()
    one.abandon()
    one.after_fork()
    assert (connector.calls, connector.loop.calls, recipient.calls) == ([], [], [])


def test_what_was_begun_is_given_up_once(make, connector, ends):
    one, given_up = make(), []
    race = one._race = Notes()
    one._connecting = ends[0].fileno()
    connector.loop.watch(one._connecting, OUT, None)
    one.cancel = relay.streams.cancellation.Cancellation()
    one._give_up = lambda: given_up.append(True)
    one.abandon()
    assert race.calls == [("give_up",)]
    assert one.cancel.is_set()
    assert connector.loop.handlers == {}
    one._connecting = -1
    one.abandon()
    assert (race.calls, given_up) == ([("give_up",)], [True])


def test_the_first_descriptor_of_all_may_be_a_connect(make, connector):
    one = make()
    one._connecting = 0
    connector.loop.watch(0, OUT, None)
    one.abandon()
    assert connector.loop.handlers == {}


def test_why_it_was_not_there_in_time_is_the_connectors(make, connector, recipient):
    one = make()
    one.too_late()
    assert connector.only("too_late") == (recipient, one.plan)


def test_a_failure_is_the_connectors(make, connector, recipient):
    error = OSError("no")
    make().finished(error, NOW)
    assert connector.only("failed") == (recipient, error, NOW)


def test_a_bug_in_a_handler_ends_the_connection(make, recipient):
    make().crashed(NOW)
    assert recipient.calls == [("close", "factory_error", NOW)]


def test_a_forked_child_closes_the_sockets_of_a_race(make):
    one = make()
    race = one._race = Notes()
    one.after_fork()
    assert race.calls == [("after_fork",)]


# -- a look-up --------------------------------------------------------------------------------------------------------


class Lookups(Notes):
    """Look-ups that the test answers; or there is no room."""

    def __init__(self, recipient, room=True):
        super().__init__()
        self.recipient, self.room = recipient, room

    def find(self, *arguments):
        self.calls.append(arguments)
        if not self.room:
            self.recipient.pending = None
        return lambda: self.calls.append("given up")


@pytest.fixture
def name():
    return SimpleNamespace(
        host="DB.internal", look_up=lambda: ["addresses"], endpoints=lambda found: [("endpoint", one) for one in found]
    )


@pytest.mark.parametrize("named", [True, False])
def test_a_name_is_looked_up_for_its_network(make, recipient, name, named):
    dialer = SocketDialer("db:5432", lambda: [FAMILY], literal=False, name=name if named else None)
    lookups = Lookups(recipient)
    one = make(dialer)
    one.look_up(lookups, dialer)
    key, function = ("db.internal", name.look_up) if named else (dialer, dialer.resolve)
    assert lookups.calls == [(key, function, "its network", one._looked_up)]
    one.abandon()
    assert lookups.calls[1:] == ["given up"]


def test_without_room_for_a_look_up_nothing_is_given_up_later(make, recipient, name):
    dialer = SocketDialer("db:5432", lambda: [FAMILY], literal=False, name=name)
    lookups, one = Lookups(recipient, room=False), make(dialer)
    one.look_up(lookups, dialer)
    one.abandon()
    assert len(lookups.calls) == 1


@pytest.mark.parametrize(("named", "raced"), [(True, [("endpoint", "a")]), (False, ["a"])])
def test_the_addresses_are_raced(make, name, named, raced, monkeypatch):
    one = make(SocketDialer("db:5432", lambda: [FAMILY], literal=False, name=name if named else None))
    one._give_up = lambda: pytest.fail("the look-up is over")
    races = []
    monkeypatch.setattr(Attempt, "race", lambda self, *arguments: races.append(arguments))
    one._looked_up(["a"], NOW)
    assert races == [(raced, NOW)]
    one.abandon()


def test_an_error_of_a_look_up_is_a_failure(make, connector, recipient):
    one = make(SocketDialer("db:5432", lambda: [FAMILY], literal=False))
    error = OSError("no such name")
    one._looked_up(error, NOW)
    assert connector.only("failed") == (recipient, error, NOW)


# -- a race -----------------------------------------------------------------------------------------------------------


class Race(Notes):
    """A race that the test ends."""

    def __init__(self, *arguments):
        super().__init__()
        self.arguments = arguments


def test_a_race_gets_what_the_connector_has(make, connector, monkeypatch):
    monkeypatch.setattr(module, "ConnectRace", Race)
    one = make()
    one.race(["a"], NOW)
    race = one._race
    assert race.calls == [("start", ["a"], NOW)]
    loop, _, _, deadline, done = race.arguments
    assert (loop, deadline, done) == (connector.loop, NOW + 10, one._raced)
    race.arguments[1]("endpoint")
    race.arguments[2]("job")
    assert connector.calls == [("open", "endpoint"), ("submit", "job")]
    one.go_on("socket", "endpoint", 115, NOW)
    assert one._race is not race
    assert one._race.calls == [("go_on", "socket", "endpoint", 115, NOW)]


def test_the_winner_of_a_race_is_the_target(make, connector, recipient):
    one = make()
    race = one._race = Notes()
    one._raced("socket", NOW)
    assert recipient.calls == [("open", "socket", None, connector.workspace, NOW)]
    one.abandon()
    assert race.calls == []


def test_a_race_that_is_lost_names_the_target(make, connector, recipient):
    factory = lambda: None  # noqa: E731  (it gets an attribute)
    factory.target = "db:5432"
    make(factory)._raced(OSError(errno.ECONNREFUSED, "no"), NOW)
    of, error, now = connector.only("failed")
    assert (of, error.reason, now) == (recipient, "refused", NOW)
    assert str(error).startswith("db:5432: connection refused")


# -- a dial -----------------------------------------------------------------------------------------------------------


class Dialing(Plain):
    """A dialer that has its stream at once, or when the test says so."""

    def __init__(self, outcome=None):
        super().__init__("db:5432")
        self.outcome, self.given_up, self.done, self.options = outcome, [], None, None

    def dial(self, deadline, done, **options):
        self.done, self.options = done, (deadline, options)
        if isinstance(self.outcome, RuntimeError):
            raise self.outcome
        if self.outcome is not None:
            done(self.outcome)
        return lambda: self.given_up.append(True)


@pytest.mark.parametrize("is_warm", [True, False])
def test_a_warm_stream_does_not_wait_for_a_lost_carrier(make, monkeypatch, is_warm):
    monkeypatch.setattr(Attempt, "is_warm", is_warm)
    dialer = Dialing()
    make(dialer).dial(dialer, NOW)
    assert dialer.options == (NOW + 10, {"wait_for_reconnect": not is_warm})


def test_a_stream_that_is_there_at_once(make, recipient, ends):
    dialer = Dialing(relay.Stream(ends[0]))
    one = make(dialer)
    one.dial(dialer, NOW)
    assert (recipient.only("open")[0], recipient.only("open")[3]) == (ends[0], NOW)
    one.abandon()
    assert dialer.given_up == []


def test_a_stream_that_comes_later_in_the_same_thread(make, recipient, ends):
    dialer = Dialing()
    one = make(dialer)
    one.dial(dialer, NOW)
    assert recipient.calls == []
    before = time.monotonic()
    dialer.done(relay.Stream(ends[0]))
    sock, _, _, now = recipient.only("open")
    assert sock is ends[0]
    assert before <= now <= time.monotonic()
    one.abandon()
    assert dialer.given_up == []


def test_a_stream_that_has_not_come_is_given_up(make):
    dialer = Dialing()
    one = make(dialer)
    one.dial(dialer, NOW)
    one.abandon()
    assert dialer.given_up == [True]


def test_a_stream_that_comes_in_another_thread_while_the_dial_begins(make, connector, recipient, ends):
    """That thread cannot touch the connection; it passes the stream on."""

    class Other(Dialing):
        def dial(self, deadline, done, **options):
            connector.loop.here = False
            thread = threading.Thread(target=done, args=[relay.Stream(ends[0])])
            thread.start()
            thread.join()
            connector.loop.here = True
            return lambda: None

    dialer = Other()
    make(dialer).dial(dialer, NOW)
    assert recipient.calls == []
    (call,) = connector.loop.waiting
    call()
    assert recipient.only("open")[0] is ends[0]


def test_a_dialer_that_raises_may_still_have_passed_on_its_way_to_report(make, connector, recipient):
    dialer = Dialing(RuntimeError("a bug"))
    one = make(dialer)
    with pytest.raises(RuntimeError, match="a bug"):
        one.dial(dialer, NOW)
    error = OSError("late")
    dialer.done(error)
    assert connector.only("failed")[:2] == (recipient, error)


def test_a_stream_after_the_end_of_the_loop_is_reset(make, connector, ends, monkeypatch):
    resets = []
    monkeypatch.setattr(relay.Stream, "reset", lambda stream: resets.append(stream))
    connector.loop.here = connector.loop.is_open = False
    one, stream = make(), relay.Stream(ends[0])
    one._on_result(stream)
    one._on_result(OSError("late"))
    assert resets == [stream]


def test_a_stream_in_another_thread_is_passed_on(make, connector, ends, monkeypatch):
    monkeypatch.setattr(relay.Stream, "reset", lambda stream: pytest.fail("it is passed on"))
    connector.loop.here = False
    make()._on_result(relay.Stream(ends[0]))
    assert len(connector.loop.waiting) == 1


def test_a_stream_that_nothing_awaits_is_closed(make, connector, recipient, ends):
    one, stream = make(), relay.Stream(ends[0])
    recipient.pending = None
    one._on_result(stream)
    assert connector.only("close_stream") == (stream, ("clean", False))
    one._on_result(OSError("late"))
    assert len(connector.calls) == 1
    assert recipient.calls == []


def test_a_bug_in_what_takes_the_stream_is_a_failure(make, connector, recipient, ends):
    error = ValueError("a bug")

    def raising(*arguments):
        raise error

    recipient.open = raising
    before = time.monotonic()
    make()._on_result(relay.Stream(ends[0]))
    of, found, now = connector.only("failed")
    assert (of, found) == (recipient, error)
    assert before <= now <= time.monotonic()


# -- a stream that a factory made -------------------------------------------------------------------------------------


def test_a_connected_stream_opens_its_connection(make, connector, recipient, ends):
    stream = relay.Stream(ends[0], target="there")
    make().finished(stream, NOW)
    assert (recipient.target, recipient.target_stream) == (ends[0], stream)
    assert recipient.calls == [("open", ends[0], stream, connector.workspace, NOW)]
    assert recipient.summary.target == "there"


@pytest.mark.parametrize("before", ["db:5432", None])
def test_a_stream_without_a_name_has_that_of_its_target_or_its_peer(make, recipient, before):
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as sock:
            recipient.summary.target = before
            make().finished(relay.Stream(sock), NOW)
            assert recipient.summary.target == (before or server.getsockname())


@pytest.mark.parametrize(("own", "route"), [(None, ("of the dialer",)), (("of the stream",), ("of the stream",))])
def test_the_path_of_a_dialed_stream_is_noted(make, recipient, ends, own, route):
    dialer = Plain("db:5432")
    dialer.route = ("of the dialer",)
    stream = relay.Stream(ends[0])
    stream.path = StreamPath(((1, 0.5),), route=own)
    make(dialer).finished(stream, NOW)
    assert (recipient.summary.path, recipient.summary.route) == (stream.path, route)


@pytest.mark.parametrize("has_path", [True, False])
def test_the_path_of_another_stream_is_not(make, recipient, ends, has_path):
    stream = relay.Stream(ends[0])
    stream.path = StreamPath(()) if has_path else None
    make(Plain("db:5432") if not has_path else lambda: None).finished(stream, NOW)
    assert (recipient.summary.path, recipient.summary.route) == (None, ())


@pytest.fixture
def connecting():
    """A socket whose connect is under way, and the server that has it in its backlog."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as sock:
        yield sock, server


def test_a_socket_whose_connect_is_under_way_is_waited_for(make, connector, recipient, connecting):
    sock, server = connecting
    one, stream = make(), relay.Stream(sock)
    one.finished(stream, NOW)
    assert recipient.calls == []
    mask, handler = connector.loop.handlers[sock.fileno()]
    assert mask == OUT
    sock.connect(server.getsockname())
    handler(OUT, NOW + 1)
    assert recipient.calls == [("open", sock, stream, connector.workspace, NOW + 1)]
    assert recipient.summary.target == server.getsockname()
    assert connector.loop.handlers == {}
    one.abandon()


def test_a_name_stays_when_the_connect_is_over(make, connector, recipient, connecting):
    sock, server = connecting
    recipient.summary.target = "db:5432"
    make().finished(relay.Stream(sock), NOW)
    sock.connect(server.getsockname())
    connector.loop.handlers[sock.fileno()][1](OUT, NOW)
    assert recipient.summary.target == "db:5432"


def test_a_connect_that_is_given_up_is_forgotten(make, connector, connecting):
    one = make()
    one.finished(relay.Stream(connecting[0]), NOW)
    one.abandon()
    assert connector.loop.handlers == {}


@pytest.mark.parametrize(("name", "shown"), [("db:5432", "db:5432"), (None, "the target")])
def test_a_socket_that_does_not_connect_is_the_factorys_fault(make, connector, recipient, connecting, name, shown):
    recipient.summary.target = name
    make().finished(relay.Stream(connecting[0]), NOW)
    connector.loop.handlers[connecting[0].fileno()][1](OUT, NOW + 1)
    of, error, now = connector.only("failed")
    assert (of, error.reason, now) == (recipient, "factory_error", NOW + 1)
    assert str(error) == f"{shown}: the factory returned a socket that is neither connected nor connecting"


class Refused:
    """A socket whose connect has failed."""

    def fileno(self):
        return 1000

    def getpeername(self):
        raise OSError(errno.ENOTCONN, "not connected")

    def getsockopt(self, level, option):
        assert level == socket.SOL_SOCKET
        return {socket.SO_ACCEPTCONN: 0, socket.SO_ERROR: errno.EHOSTDOWN}[option]


def test_a_connect_that_fails_names_the_target_and_the_error(make, connector):
    stream = SimpleNamespace(socket=Refused(), target="db:5432", path=None)
    make().finished(stream, NOW)
    connector.loop.handlers[1000][1](OUT, NOW)
    _, error, _ = connector.only("failed")
    assert (error.reason, error.errno) == ("unreachable", errno.EHOSTDOWN)
    assert str(error) == f"db:5432: {os.strerror(errno.EHOSTDOWN)}"


def test_a_listening_socket_is_no_stream(make, connector):
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(ValueError, match="the factory returned a listening socket; return a connected one"):
            make().finished(relay.Stream(server), NOW)
    assert connector.loop.handlers == {}
