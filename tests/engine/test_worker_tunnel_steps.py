"""``relay.engine.worker_tunnel`` step by step: what a worker tells the others, and what it leaves to them."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace

import pytest

from relay.engine import worker_tunnel as module
from relay.engine.admission import Slots
from relay.engine.relay_thread import RelayThread
from relay.engine.shared_acceptor import SharedAcceptor
from relay.engine.tunnel import Tunnel
from relay.engine.worker_table import AWAY
from relay.engine.worker_tunnel import WorkerRelayThread, WorkerTunnel
from relay.streams.proxy_handshake import HandshakeListener
from relay.streams.upgrade_listener import UpgradeListener

NOW = 1234.5
NUMBER = 1


class Table:
    """The counts."""

    def __init__(self, workers=3):
        self.workers, self.calls = workers, []

    def admit(self, *given):
        self.calls.append(("admit", *given))

    def store_load(self, *given):
        self.calls.append(("store_load", *given))


class Place(SimpleNamespace):
    """The place of the worker."""

    def close(self):
        self.closed = True


@pytest.fixture
def place():
    return Place(number=NUMBER, table=Table(), closed=False)


@pytest.fixture
def late():
    return []


@pytest.fixture
def make(place, late, monkeypatch):
    """Make a relay thread whose base does nothing."""

    def begin(self, *given):
        self.given = given
        self._slots = Slots(-1)
        self._receive = given[0]

    monkeypatch.setattr(RelayThread, "__init__", begin)
    return lambda receive=None, paused=False: WorkerRelayThread(place, paused, late.append, receive, "more")


@pytest.fixture
def one(make):
    return make()


# -- the tunnel ----------------------------------------------------------------------------------------------------


class Thread:
    """A relay thread that notes its calls."""

    def __init__(self):
        self.calls = []
        self.loop = SimpleNamespace(call=lambda function: self.calls.append(("call", function)))

    def start_close(self, *given, **options):
        self.calls.append(("start_close", *given, options))

    def run_in_thread(self, function):
        self.calls.append(("run_in_thread", function()))


@pytest.fixture
def tunnel(monkeypatch):
    begun = []
    monkeypatch.setattr(Tunnel, "__init__", lambda self, *given, **options: begun.append((given, options)))
    made = WorkerTunnel("listener", "factory", place="place", paused=True, on_late=print, nconnect=5)
    made.begun = begun
    return made


def test_its_thread_gets_its_place(tunnel, monkeypatch):
    assert tunnel.begun == [(("listener", "factory"), {"nconnect": 5})]
    monkeypatch.setattr(module, "WorkerRelayThread", lambda *given: given)
    assert tunnel._start(1, 2) == ("place", True, print, 1, 2)
    other = WorkerTunnel("listener", "factory", place="place")
    place, paused, on_late = other._as_worker
    assert (place, paused, on_late(5)) == ("place", False, None)


def test_its_close_does_not_wait(tunnel):
    tunnel._relay = thread = Thread()
    tunnel.start_close(5.0)
    tunnel.start_close(None, 2.0)
    assert thread.calls == [("start_close", 5.0, {"spread": 0.0}), ("start_close", None, {"spread": 2.0})]


def test_a_watchdog_waits_for_a_turn(tunnel):
    tunnel._relay = thread = Thread()
    tunnel.turn()
    assert thread.calls == [("run_in_thread", None)]


def test_its_backlog_is_taken_in_the_thread(tunnel, one):
    tunnel._relay, calls = one, []
    one.loop = SimpleNamespace(call=calls.append)
    tunnel.take_backlog()
    assert calls == [one.take_backlog]


# -- its thread ----------------------------------------------------------------------------------------------------


def test_it_begins_away(one, place, late):
    assert one.given == (None, "more")
    assert (one._place, one._number, one._table, one._away) == (place, NUMBER, place.table, AWAY)
    one.report_late(2)
    assert late == [2]


@pytest.mark.parametrize(("limit", "quota", "calls"), [(-1, -1, 1024), (8, 3, 3), (7, 2, 2), (1, 0, 1024)])
def test_it_has_its_part_of_the_limit(one, limit, quota, calls):
    one._set_limit(limit)
    assert (one.tunnel_limit, one._slots.limit, one._most_calls) == (limit, quota, calls)


def test_it_waits_anew_where_the_limit_has_changed(one):
    heard = []
    one._acceptor = SimpleNamespace(listen=heard.append)
    one._set_limit(8)
    assert heard == [False]
    one._acceptor = None
    one._set_limit(8)


class Shaking(HandshakeListener):
    """A listener of proxy clients."""


class Upgrading(UpgradeListener):
    """A listener whose clients shake hands; notes its calls."""

    def __init__(self):
        self.calls = []

    def deliver(self, *given):
        self.calls.append(given)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", [socket.socket, Shaking, Upgrading, object])
def test_its_acceptor(one, place, monkeypatch, workers, kind):
    monkeypatch.setattr(module, "SharedAcceptor", lambda *given: ("shared", *given))
    monkeypatch.setattr(module, "make_acceptor", lambda *given: ("own", *given))
    place.table.workers = workers
    listener = kind()
    if workers > 1 and kind is not object:
        assert one._make_acceptor(listener) == ("shared", one, listener, place)
    else:
        assert one._make_acceptor(listener) == ("own", one, listener)
    if kind is socket.socket:
        listener.close()


def test_its_room_and_its_backlog(one, monkeypatch):
    monkeypatch.setattr(one, "_has_room", lambda: "room")
    assert one.has_room() == "room"
    taken = []
    monkeypatch.setattr(SharedAcceptor, "take_backlog", lambda self, now: taken.append(now))
    one._acceptor = SharedAcceptor.__new__(SharedAcceptor)
    before = time.monotonic()
    one.take_backlog()
    assert before <= taken[0] <= time.monotonic()
    one._acceptor = object()
    one.take_backlog()
    assert len(taken) == 1


def test_it_tells_whether_it_takes_clients(one, place):
    one._slots.connections["one"] = one._slots.connections["two"] = None
    one.set_taking(True)
    one.set_taking(False)
    assert place.table.calls == [("store_load", NUMBER, 2), ("store_load", NUMBER, AWAY + 2)]


@pytest.mark.parametrize("away", [True, False])
def test_it_tells_of_its_connections(one, place, monkeypatch, away):
    one.set_taking(not away)
    del place.table.calls[:]
    one._slots.connections["one"] = None
    admitted, over = [], []

    def admit(self, *given):
        admitted.append((len(place.table.calls), given))
        return "a connection"

    def connection_over(self, connection):
        over.append(connection)
        self._slots.connections["another"] = None

    monkeypatch.setattr(RelayThread, "admit", admit)
    monkeypatch.setattr(RelayThread, "connection_over", connection_over)
    assert one.admit("client", "stream", "peer", NOW) == "a connection"
    assert one.admit("client", None, "peer", NOW, 0) == "a connection"
    assert admitted == [(1, ("client", "stream", "peer", NOW, 1)), (2, ("client", None, "peer", NOW, 0))]
    one.connection_over("a connection")
    assert over == ["a connection"]
    base = AWAY if away else 0
    assert place.table.calls == [
        ("admit", NUMBER, base + 2),
        ("admit", NUMBER, base + 2),
        ("store_load", NUMBER, base + 2),
    ]


@pytest.mark.parametrize("upgrades", [True, False])
@pytest.mark.parametrize("paused", [True, False])
def test_it_may_be_paused_at_first(make, monkeypatch, upgrades, paused):
    one = make(listener := Upgrading() if upgrades else object(), paused)
    closes = []
    one.workspace = "the workspace"
    monkeypatch.setattr(one, "_pause", lambda close: closes.append(close))
    one.on_start(NOW)
    assert closes == ([False] if paused else [])
    if upgrades:
        assert listener.calls == ([(None, "the workspace")] if paused else [])


def test_its_place_is_closed_last(one, place, monkeypatch):
    monkeypatch.setattr(RelayThread, "tear_down", lambda self: place.closed or closed.append("before"))
    closed = []
    one.tear_down()
    assert closed == ["before"]
    assert place.closed is True
