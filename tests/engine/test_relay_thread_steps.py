"""``relay.engine.relay_thread`` step by step: what its thread asks of its parts, and in which order."""

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
from relay.access.policy import ClientPolicy
from relay.engine import relay_thread as module
from relay.engine.connection_id import id_of
from relay.engine.options import TunnelOptions
from relay.engine.records import ConnectionSummary
from relay.engine.relay_thread import RelayThread
from relay.streams.listener import SocketListener, TunnelListener
from relay.streams.proxy_handshake import HandshakeListener

NOW = 1234.5
PEER = ("192.0.2.7", 5)
LISTENER = TunnelListener()


class Part(Notes):
    """A part of the thread: notes each call also in a list that all parts share."""

    log: list[object]

    def __getattr__(self, name):
        call = super().__getattr__(name)

        def logged(*arguments, **options):
            call(*arguments, **options)
            Part.log.append((type(self).__name__, name))

        return logged


class Acceptor(Part):
    """The acceptor."""

    listening = True


class Connector(Part):
    """The connector."""

    calls_under_way = 0
    error = None

    def __init__(self, *given):
        self.notes = []
        super().__init__(*given)
        self.workers = Pool()

    def __getattribute__(self, name):
        if name == "calls":  # of the factory; those of this double are its notes
            return object.__getattribute__(self, "calls_under_way")
        return object.__getattribute__(self, name)

    def __setattr__(self, name, value):
        object.__setattr__(self, "calls_under_way" if name == "calls" and value != [] else name, value)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments):
            self.notes.append((name, *arguments))
            Part.log.append(("Connector", name))
            if name == "connect" and self.error is not None:
                raise self.error
            return ("figures",) if name == "warm_figures" else None

        return call


class Pool(Part):
    """The threads of the connector."""

    is_this = False

    def is_one(self):
        return self.is_this


class Entrance(Part):
    """The entrance, whose decisions the test makes."""

    reads_headers, gate, is_admitted, is_introduced_, is_client = False, None, True, True, True

    def admits(self, *given):
        self.calls.append(("admits", *given))
        return self.is_admitted

    def is_introduced(self, *given):
        self.calls.append(("is_introduced", *given))
        return self.is_introduced_

    def end_half_open(self, connection):
        self.calls.append(("end_half_open", connection))
        return self.is_client

    def hand_of(self, listener):
        return ("hand of", listener)


class Statistics(Part):
    """The counts."""

    def __init__(self, *given):
        super().__init__(*given)
        self.accepted = 0
        self.accept_errors = dict.fromkeys(("EMFILE", "ENOMEM", "other"), 0)

    def metrics(self, *given):
        self.calls.append(("metrics", *given))
        return SimpleNamespace(stats=lambda: "stats")

    def recent(self):
        return ["recent"]


class Watcher(Part):
    """The thread that calls ``on_end``."""

    is_here = False

    def is_on_its_thread(self):
        return self.is_here


class Generations(Part):
    """The generations."""

    living = ()


class Pipes(Part):
    """The pipes."""


class Connection(Part):
    """A connection."""

    is_closed = False
    target = None

    def __init__(self, owner, client, stream, peer, now):
        super().__init__(owner, client, stream, peer, now)
        self.client = client
        self.summary = ConnectionSummary(peer, now)

    def record(self, now):
        return ("record of", self, now)


class One(RelayThread):
    """A relay thread that is not started; notes the hooks."""

    hooks: list[object]

    def __init__(self, *given):
        self.hooks = []
        super().__init__(*given)

    def start(self):
        self.hooks.append("start")

    def on_busy(self):
        self.hooks.append("busy")

    def on_idle(self, now):
        self.hooks.append(("idle", now))

    def run_in_thread(self, function):
        function()

    def _make_acceptor(self, receive):
        self.acceptor_of = receive
        return Acceptor()


@pytest.fixture(autouse=True)
def log():
    Part.log = []
    return Part.log


@pytest.fixture
def parts(monkeypatch):
    for name, double in {
        "Connection": Connection,
        "Connector": Connector,
        "Entrance": Entrance,
        "Generations": Generations,
        "Observer": Watcher,
        "PipePool": Pipes,
        "Statistics": Statistics,
    }.items():
        monkeypatch.setattr(module, name, double)


@pytest.fixture
def make(parts):
    made = []

    def build(receive=LISTENER, factory="factory", nconnect=-1, on_end=None, policy=None, **options):
        one = One(receive, factory, TunnelOptions(name="it", nconnect=nconnect, on_end=on_end, **options), policy)
        made.append((one, one.loop.close))
        return one

    yield build
    for one, close in made:
        module._all.discard(one)
        one._spare.release()
        close()


@pytest.fixture
def one(make):
    return make()


def living(one, count=1, started=NOW):
    """Give it so many connections."""
    found = [Connection(one, None, None, PEER, started) for _ in range(count)]
    one._slots.connections.update(dict.fromkeys(found))
    return found


# -- the beginning -------------------------------------------------------------------------------------------------


def test_it_begins(make):
    one = make(policy=(policy := ClientPolicy()), source="127.0.0.2", send_proxy="v1")
    assert (one.name, one.limits.lifetime, one.keepalive_enabled_until, one.hooks) == ("it", 60.0, 0.0, ["start"])
    assert one._statistics.given[:3] == ("it", 60.0, None)
    outlets = one._statistics.given[3]
    assert (outlets.on_ended, outlets.store) == (None, None)
    assert one._observer is None
    assert one.entrance.given == (one, one._slots, policy, "v1", None)
    assert one._generations.given == (one.loop.timers,)
    assert one._connector.given == (one, "factory", "127.0.0.2")
    assert one.workspace.loop is one.loop
    assert one.workspace.pipes is one._pipes
    assert (one._receive, one._make_send, one.acceptor_of) == (LISTENER, "factory", LISTENER)
    assert one._keepalive_timer.due == math.inf
    assert one in module._all
    assert one.has_spare_fd() is True
    assert one.release_spare_fd() is True
    assert one.release_spare_fd() is False


def test_without_a_policy_there_is_no_source(one):
    assert one._connector.given == (one, "factory", None)
    assert one.entrance.given == (one, one._slots, None, None, None)


def test_whoever_wants_records_gets_them(make):
    one = make(on_end=print)
    assert one._observer.given == (print, "it")
    assert one._statistics.given[:3] == ("it", 60.0, one._observer)


def test_a_handshake_of_its_listener_has_its_limit(make):
    listener = SimpleNamespace(handshake_timeout=None)
    make(listener, connect_timeout=20.0)
    assert listener.handshake_timeout == 20.0


def test_a_system_without_splice(make, monkeypatch):
    monkeypatch.delattr(os, "splice")
    one = make()
    assert (one._pipes, one.workspace.pipes) == (None, None)


def test_what_it_opened_is_closed_if_it_cannot_begin(make, monkeypatch):
    closed = []
    loops = []

    class Broken(Connector):
        def __init__(self, owner, *given):
            owner.has_spare_fd()
            monkeypatch.setattr(owner.loop, "close", lambda close=owner.loop.close: (closed.append(True), close()))
            loops.append(owner)
            raise OSError(errno.EMFILE, "no more")

    monkeypatch.setattr(module, "Connector", Broken)
    with pytest.raises(OSError, match="no more"):
        make()
    assert closed == [True]
    assert not loops[0].release_spare_fd()


@pytest.mark.parametrize(("limit", "calls"), [(-1, 1024), (0, 1024), (1, 1), (8, 8), (1024, 1024), (5000, 1024)])
def test_the_calls_at_a_time(make, limit, calls):
    one = make(nconnect=limit)
    assert (one._slots.limit, one._most_calls, one.unlimited) == (limit, calls, limit < 0)


# -- from any thread -----------------------------------------------------------------------------------------------


def test_its_figures(one):
    (connection,) = living(one)
    assert one.count == 1
    assert one.recent() == ["recent"]
    before = time.monotonic()
    ((text, found, now),) = one.connections()
    assert (text, found) == ("record of", connection)
    assert before <= now <= time.monotonic()
    assert one.stats() == "stats"
    assert one._statistics.calls == [("metrics", one._slots.connections, ("figures",))]
    assert one.all_connections == [connection]


def test_warm_streams_are_kept_in_the_thread(one, monkeypatch):
    calls = []
    monkeypatch.setattr(one.loop, "call", calls.append)
    one.keep_warm(4, 30.0)
    assert one._connector.notes == []
    calls[0]()
    assert one._connector.notes == [("keep_warm", 4, 30.0)]


def test_one_connection_is_killed(one):
    _, second, _ = living(one, 3)
    before = time.monotonic()
    text = id_of(second.summary.number, second.summary.started)
    assert one.kill(text.upper()) is True
    ((name, reason, now),) = second.calls
    assert (name, reason) == ("close", "killed")
    assert before <= now <= time.monotonic()
    second.is_closed = True
    assert one.kill(text) is False
    assert len(second.calls) == 1


def test_what_is_no_id_kills_none(one):
    (connection,) = living(one)
    summary = connection.summary
    for text in ("", "nonsense", id_of(summary.number + 1, summary.started), id_of(summary.number, NOW + 3600)):
        assert one.kill(text) is False
    assert connection.calls == []


# -- a client ------------------------------------------------------------------------------------------------------


def test_a_client_gets_a_stream(one, ends):
    one.accepted(ends[0], None, PEER, NOW)
    (connection,) = one.all_connections
    assert connection.given == (one, ends[0], None, PEER, NOW)
    assert one._slots.connections == {connection: None}
    assert one._connector.notes == [("connect", connection, NOW)]
    assert one.hooks == ["start", "busy"]
    assert one._statistics.accepted == 1
    assert one.entrance.calls == one._acceptor.calls == []
    assert connection.summary.identity is None
    one.accepted(ends[0], None, PEER, NOW)
    assert one.hooks == ["start", "busy"]
    assert one._statistics.accepted == 2


def test_not_before_its_header(one, ends):
    one.entrance.reads_headers = True
    one.accepted(ends[0], None, PEER, NOW)
    assert one.entrance.calls == [("read_request", ends[0], None, PEER, NOW)]
    assert one.all_connections == []
    one.accepted(ends[0], stream := relay.Stream(ends[0]), PEER, NOW)
    assert [connection.given[2] for connection in one.all_connections] == [stream]


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("peer", [PEER, ""])
@pytest.mark.parametrize("admitted", [True, False])
def test_the_entrance_is_asked(one, ends, gate, peer, admitted):
    one.entrance.gate, one.entrance.is_admitted = object() if gate else None, admitted
    one.accepted(ends[0], None, peer, NOW)
    (connection,) = one.all_connections
    is_asked = gate or peer == ""
    assert one.entrance.calls == ([("admits", connection, NOW)] if is_asked else [])
    assert bool(one._connector.notes) == (admitted or not is_asked)


@pytest.mark.parametrize(("limit", "updates"), [(-1, 0), (0, 0), (1, 1), (2, 0)])
def test_at_the_limit_no_more_are_accepted(make, ends, limit, updates):
    one = make(nconnect=limit)
    one._connector.calls = -5
    one.accepted(ends[0], None, PEER, NOW)
    assert one._acceptor.calls == [("listen", False)] * updates


@pytest.mark.parametrize(("calls", "updates"), [(1023, 0), (1024, 1), (1025, 1)])
def test_at_the_most_calls_too(one, ends, calls, updates):
    one._connector.calls = calls
    one.accepted(ends[0], None, PEER, NOW)
    assert one._acceptor.calls == [("listen", False)] * updates


def test_a_bug_in_the_connector_ends_one_connection(one, ends):
    one._connector.error = error = ValueError("a bug")
    one.accepted(ends[0], None, PEER, NOW)
    (connection,) = one.all_connections
    assert one._connector.notes == [("connect", connection, NOW), ("failed", connection, error, NOW)]


def test_a_client_of_this_machine_is_its_process(one, ends):
    connection = one.admit(ends[0], None, "a name that it has chosen", NOW)
    assert connection.summary.identity.process == os.getpid()
    assert one.admit(ends[0], relay.Stream(ends[0]), "", NOW).summary.identity is None
    with socket.socket() as unconnected:
        assert one.admit(unconnected, None, "", NOW).summary.identity is None


def test_its_user_gets_a_name(one, ends, monkeypatch):
    monkeypatch.setattr(module, "named", lambda identity: ("named", identity.process))
    assert one.admit(ends[0], None, "", NOW).summary.identity == ("named", os.getpid())


def test_a_client_may_count_later(one, ends):
    one.admit(ends[0], None, PEER, NOW, 0)
    assert one._statistics.accepted == 0
    one.count_accepted()
    one.count_accepted()
    assert one._statistics.accepted == 2


def test_keepalive_comes_after_a_time(one, ends):
    one.admit(ends[0], None, PEER, NOW)
    one.admit(ends[0], None, PEER, NOW + 5)
    assert one._keepalive_timer.due == NOW + 15
    one._keepalive_timer.expire(NOW + 15)
    assert one.keepalive_enabled_until == NOW + 15


def test_keepalive_for_those_that_came_since_the_last_time(one):
    first, second, third = (living(one, 1, NOW + number)[0] for number in range(3))
    one.keepalive_enabled_until = NOW
    one._enable_keepalive(NOW + 15)
    assert (first.calls, second.calls, third.calls) == ([], [("enable_keepalive",)], [("enable_keepalive",)])
    assert one.keepalive_enabled_until == NOW + 15


def test_the_hand_of_a_listener(one):
    assert one.hand_of("a listener") == ("hand of", "a listener")


def test_room_is_made_in_three_places(one, log):
    one.make_room(NOW)
    assert log == [("Entrance", "empty_tarpit"), ("Connector", "make_room"), ("Entrance", "make_room")]
    assert one.entrance.calls == [("empty_tarpit", NOW), ("make_room", NOW)]
    assert one._connector.notes == [("make_room", NOW)]


def test_what_may_block_is_called_elsewhere(one):
    one.call_elsewhere(print)
    assert one._connector.workers.calls == [("submit", print)]


# -- a client that a listener object has accepted ------------------------------------------------------------------


@pytest.fixture
def offered(one, monkeypatch):
    """Notes the clients that are accepted then, and the streams that are closed."""
    found = SimpleNamespace(accepted=[], closed=[])
    monkeypatch.setattr(one, "accepted", lambda *given: found.accepted.append(given))
    monkeypatch.setattr(one, "close_stream", lambda stream, clean: found.closed.append((stream, clean)))
    return found


def test_a_client_that_was_offered(one, ends, offered):
    stream = relay.Stream(ends[0])
    one.offered(stream, PEER, NOW)
    assert one.entrance.calls == [("is_introduced", stream, PEER, NOW)]
    assert offered.accepted == [(ends[0], stream, PEER, NOW)]
    assert one.release_spare_fd() is True, "it was opened"
    one.entrance.is_introduced_ = False
    one.offered(stream, PEER, NOW)
    assert len(offered.accepted) == 1
    assert offered.closed == []


def test_a_client_that_was_offered_after_the_close(one, ends, offered, monkeypatch):
    monkeypatch.setattr(One, "is_open", False)
    one.offered(stream := relay.Stream(ends[0]), PEER, NOW)
    assert (offered.closed, offered.accepted) == ([(stream, False)], [])


def test_a_client_that_its_listener_rejects(one, ends, offered, caplog):
    stream = relay.Stream(ends[0])
    stream.denied = "not on the list"
    one.offered(stream, PEER, NOW)
    (connection,) = one.all_connections
    assert connection.given == (one, ends[0], stream, PEER, NOW)
    assert connection.summary.rule == "access-list"
    assert connection.calls == [("close", "denied", NOW)]
    assert one.entrance.calls == [("log_denied", connection, NOW)]
    assert one._statistics.accepted == 1
    assert caplog.record_tuples == [("relay", logging.WARNING, "it: not on the list")]
    one.offered(stream, PEER, NOW)
    assert one._statistics.accepted == 2
    assert one._slots.connections == dict.fromkeys(one.all_connections)


# -- the end of a connection ---------------------------------------------------------------------------------------


def end(one, connection):
    connection.summary.finished = NOW + 1
    one.connection_over(connection)


def test_a_connection_that_has_ended_is_counted(one):
    first, second = living(one, 2)
    end(one, first)
    assert one._statistics.calls == [("add", first)]
    assert one.all_connections == [second]
    assert one.hooks == ["start"]
    assert one._generations.calls == one._acceptor.calls == one.entrance.calls == []
    end(one, second)
    assert one.hooks == ["start", ("idle", NOW + 1)]


@pytest.mark.parametrize("is_client", [True, False])
def test_one_that_was_half_open_may_be_none_of_a_client(one, is_client):
    first, second = living(one, 2)
    one._slots.half_open[first] = None
    one.entrance.is_client = is_client
    end(one, second)
    assert one.entrance.calls == [("end_half_open", second)]
    assert one._statistics.calls == ([("add", second)] if is_client else [])


def test_a_generation_has_one_less(one):
    (connection,) = living(one)
    one._generations.living = ("one",)
    end(one, connection)
    assert one._generations.calls == [("remove", connection)]


def test_the_next_one_gets_its_slot(one):
    first, second = living(one, 2)
    one._slots.queued[second] = None
    end(one, first)
    assert one.entrance.calls == [("serve_queue", NOW + 1)]


@pytest.mark.parametrize("closing", [True, False])
def test_a_tunnel_that_does_not_listen_looks_why(one, monkeypatch, closing):
    looked = []
    monkeypatch.setattr(One, "is_closing", closing)
    monkeypatch.setattr(one, "look_drained", lambda: looked.append("drained"))
    monkeypatch.setattr(one, "update_listening", lambda: looked.append("listening"))
    one._acceptor.listening = False
    (connection,) = living(one)
    end(one, connection)
    assert looked == ["drained" if closing else "listening"]


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (OSError(errno.EMFILE, "no more"), "EMFILE"),
        (OSError(errno.ENOMEM, "no more"), "ENOMEM"),
        (OSError("strange"), "other"),
        (ValueError("odd"), "other"),
    ],
)
def test_errors_of_accepting_are_counted(one, error, name):
    one.accept_failed(error)
    one.accept_failed(error)
    assert {key: count for key, count in one._statistics.accept_errors.items() if count} == {name: 2}


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("kind", [None, "blocking", "nonblocking"])
def test_a_stream_is_closed(one, ends, monkeypatch, clean, kind):
    discarded, resets, closed = [], [], []
    monkeypatch.setattr(one.loop, "discard", discarded.append)
    monkeypatch.setattr(relay.Stream, "reset", lambda stream: resets.append((stream, stream.on_close)))

    def on_close():
        closed.append(True)

    on_close.nonblocking = kind == "nonblocking"
    stream = relay.Stream(ends[0], on_close=on_close if kind else None)
    one.close_stream(stream, clean)
    assert discarded == ([ends[0]] if clean else [])
    assert resets == ([] if clean else [(stream, None)])
    assert stream.on_close is None
    assert closed == ([True] if kind == "nonblocking" else [])
    assert one._connector.notes == ([("submit", on_close)] if kind == "blocking" else [])


def test_a_call_that_does_not_say_so_may_block(one, ends):
    one.close_stream(relay.Stream(ends[0], on_close=one.hooks.clear), clean=False)
    assert [name for name, _ in one._connector.notes] == ["submit"]


# -- accepting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_open", "limit", "calls", "listens"),
    [
        (True, -1, 0, True),
        (False, -1, 0, False),
        (True, 2, 0, True),
        (True, 1, 0, False),
        (True, -1, 1023, True),
        (True, -1, 1024, False),
    ],
)
def test_it_listens_while_there_is_room(make, monkeypatch, is_open, limit, calls, listens):
    one = make(nconnect=limit)
    living(one)
    monkeypatch.setattr(One, "is_open", is_open)
    one._connector.calls = calls
    one.update_listening()
    assert one._acceptor.calls == [("listen", listens)]
    one._acceptor.listening = listens
    assert one.listening is listens


class Shaking(HandshakeListener):
    """A listener of proxy clients."""

    def __init__(self, address):
        self.listening = SimpleNamespace(address=address, closed=0, close=self._close)

    def _close(self):
        self.listening.closed += 1


@pytest.mark.parametrize(
    ("listener", "headers", "exposed"),
    [
        (Shaking("0.0.0.0"), False, True),
        (Shaking("127.0.0.1"), False, False),
        (Shaking("127.0.0.1"), True, True),
        (TunnelListener(), True, False),
    ],
)
def test_who_can_reach_it(make, monkeypatch, listener, headers, exposed):
    monkeypatch.setattr(module, "is_exposed", lambda listening: listening.address == "0.0.0.0")
    one = make(listener)
    one.entrance.reads_headers = headers
    assert one.is_exposed is exposed


# -- its end -------------------------------------------------------------------------------------------------------


def test_its_listener_is_closed(one):
    before = time.monotonic()
    one.close_listener()
    assert one._acceptor.calls == [("listen", False), ("close",)]
    assert one._connector.notes == [("keep_warm", 0, 0.0)]
    ((name, now),) = one.entrance.calls
    assert name == "empty_tarpit"
    assert before <= now <= time.monotonic()


def test_all_connections_end(one):
    first, second = living(one, 2)
    one._slots.queued[second] = None
    one.end_all(NOW)
    assert first.calls == second.calls == [("close", "closed", NOW)]
    assert one._slots.queued == {}


@pytest.mark.parametrize(
    ("on_end", "worker", "here", "base", "must_not"),
    [
        (None, False, False, False, False),
        (None, True, False, False, True),
        (print, False, False, False, False),
        (print, False, True, False, True),
        (None, False, False, True, True),
    ],
)
def test_who_must_not_wait(make, monkeypatch, on_end, worker, here, base, must_not):
    one = make(on_end=on_end)
    one._connector.workers.is_this = worker
    if one._observer is not None:
        one._observer.is_here = here
    monkeypatch.setattr(module.LoopThread, "must_not_wait", lambda self: base)
    assert one.must_not_wait() is must_not


@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("splice", [True, False])
def test_all_is_closed_in_order(make, monkeypatch, log, observed, splice):
    closed = []
    one = make(on_end=print if observed else None)
    if not splice:
        one._pipes = None
    one.has_spare_fd()
    monkeypatch.setattr(module, "close_factory", lambda *given: (closed.append(given), log.append("factory")))
    monkeypatch.setattr(one.loop, "close", lambda: log.append("loop"))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=iter([NOW, NOW + 0.2]).__next__))
    one.tear_down()
    assert log == [
        ("Entrance", "keep"),
        ("Pool", "close"),
        ("Acceptor", "join"),
        ("Pool", "join"),
        *([("Pipes", "close")] if splice else []),
        "loop",
        "factory",
        *([("Watcher", "close")] if observed else []),
    ]
    assert one._acceptor.calls == [("join", 0.5)]
    assert one._connector.workers.calls[1][1] == pytest.approx(0.3)
    assert closed == [("factory", "it")]
    assert one not in module._all
    assert one.release_spare_fd() is False


# -- a forked child ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["object", "socket", "proxy"])
@pytest.mark.parametrize("splice", [True, False])
def test_a_forked_child_closes_its_copies(make, monkeypatch, log, kind, splice):
    with socket.socket() as plain:
        listener = {"object": TunnelListener(), "socket": SocketListener(plain), "proxy": Shaking("")}[kind]
        one = make(listener)
        if not splice:
            one._pipes = None
        one.has_spare_fd()
        first, second = living(one, 2)
        monkeypatch.setattr(one, "abandon", lambda: log.append("abandon"))
        monkeypatch.setattr(one.loop, "close", lambda: log.append("loop"))
        module._after_fork_in_child()
        assert log == [
            "abandon",
            ("Statistics", "after_fork"),
            ("Connection", "after_fork"),
            ("Connection", "after_fork"),
            ("Connector", "after_fork"),
            *([("Pipes", "close")] if splice else []),
            "loop",
        ]
        assert first.calls == second.calls == [("after_fork",)]
        assert one.all_connections == []
        assert one.release_spare_fd() is False
        assert (plain.fileno() < 0) == (kind == "socket")
        assert kind != "proxy" or listener.listening.closed == 1
        assert len(module._all) == 0


def test_the_hooks_do_nothing_by_themselves():
    assert RelayThread.on_idle(None, NOW) is None
    assert RelayThread.on_busy(None) is None
    assert RelayThread.on_close(None, None, NOW) is None
