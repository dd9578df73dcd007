"""``relay.streams.lookups``: names are looked up a few at a time, once for all who ask, and slow ones stop no other."""

import socket

import pytest

from relay import ConnectError
from relay.eventloop.sockets import Endpoint
from relay.streams import lookups as module
from relay.streams.lookups import BoundName, Lookups, key_of, resolved
from relay.streams.source import Source


class World:
    """A loop whose calls are made at once, and threads whose jobs run when the test says so."""

    def __init__(self):
        self.jobs = []
        self.looked_up = []
        self.told = []
        self.lookups = Lookups(self, self.jobs.append)

    def call(self, function):
        function()
        return True

    def find(self, name, source="a", error=None):
        def look_up():
            self.looked_up.append(name)
            if error is not None:
                raise error
            return [Endpoint(2, (name, 1))]

        return self.lookups.find(name, look_up, source, lambda found, now: self.told.append((name, found)))

    def run(self):
        self.jobs.pop(0)()

    def run_all(self):
        while self.jobs:
            self.run()


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(module, "_MOST", 4)
    monkeypatch.setattr(module, "_SHARE", 2)
    monkeypatch.setattr(module, "_WAITING", 3)
    return World()


def test_equal_names_are_looked_up_once_at_a_time(world):
    for _ in range(10):
        world.find("db")
    assert len(world.jobs) == 1
    world.find("db", source="b")
    world.run()
    assert world.looked_up == ["db"]
    assert world.told == [("db", [Endpoint(2, ("db", 1))])] * 11
    world.find("db")  # the next one asks again: nothing is kept
    world.run()
    assert world.looked_up == ["db", "db"]


@pytest.mark.parametrize("error", [OSError("no such name"), SystemExit(1)])
def test_what_a_look_up_raises_is_told_to_all(world, error):
    world.find("db", error=error)
    world.find("db")
    world.run()
    assert world.told == [("db", error)] * 2


def test_one_source_leaves_threads_to_others(world):
    for name in ("a1", "a2", "a3", "a4"):
        world.find(name)
    assert len(world.jobs) == 2
    world.find("b1", source="b")
    assert len(world.jobs) == 3


def test_sources_take_turns(world):
    for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        world.find(name, source=name[0])
    world.run_all()
    assert world.looked_up == ["a1", "a2", "b1", "b2", "a3", "c1", "a4"]


def test_where_too_many_wait_the_oldest_of_the_largest_source_is_refused(world):
    world.find("b1", source="b")
    world.find("b2", source="b")
    world.find("b3", source="b")
    for name in ("a1", "a2", "a3", "a4"):
        world.find(name)
    assert world.told == []
    world.find("a5")
    ((name, error),) = world.told
    assert (name, error.reason) == ("a3", "overloaded")
    assert str(error) == "a3: too many DNS lookups are waiting; check the name server"
    assert isinstance(error, ConnectError)
    world.run_all()
    assert sorted(world.looked_up) == ["a1", "a2", "a4", "a5", "b1", "b2", "b3"]


def test_what_is_given_up_takes_no_place(world):
    give_up = [world.find(name) for name in ("a1", "a2", "a3", "a4", "a5")]
    for one in (0, 2, 3, 3):
        give_up[one]()
    world.find("a6")
    world.find("a7")
    world.run_all()
    assert world.looked_up == ["a1", "a2", "a5", "a6", "a7"]  # a1 was running, which nothing can end
    assert [name for name, _ in world.told] == ["a2", "a5", "a6", "a7"]
    give_up[4]()  # too late, which does not matter


def test_one_that_joins_keeps_a_name_waiting(world):
    for name in ("a1", "a2"):
        world.find(name)
    first = world.find("a3")
    world.find("a3", source="b")
    first()
    world.run_all()
    assert [name for name, _ in world.told] == ["a1", "a2", "a3"]


def test_a_look_up_that_outlives_who_asked_is_joined(world):
    world.find("a1")()
    world.find("a1")
    assert len(world.jobs) == 1
    world.run()
    assert [name for name, _ in world.told] == ["a1"]


def test_a_client_may_ask_again_or_give_up_while_room_is_made(world, monkeypatch):
    monkeypatch.setattr(module, "ROOM", 1)  # all that wait give way at a time
    for name in ("a1", "a2"):
        world.find(name)
    give_up = []

    def refused(found, now):
        give_up[0]()
        world.find("a7")

    world.lookups.find("a3", list, "a", refused)
    give_up.append(world.find("a4"))
    world.find("a5")
    world.find("a6")
    world.run_all()
    assert sorted(world.looked_up) == ["a1", "a2", "a6", "a7"]
    assert [name for name, found in world.told if isinstance(found, ConnectError)] == ["a5"]


def test_an_ended_look_up_may_lead_to_more_than_there_is_room_for(world, monkeypatch):
    monkeypatch.setattr(module, "ROOM", 1)
    for name in ("a1", "a2"):
        world.find(name)
    world.lookups.find("a3", list, "a", lambda found, now: world.find("a7"))
    for name in ("a4", "a5", "a6"):
        world.find(name)
    assert [name for name, _ in world.told] == ["a4", "a5", "a6"]
    world.run_all()
    assert world.looked_up == ["a1", "a2", "a7"]


def test_clients_from_nowhere_are_one_source(world):
    for name in ("a1", "a2", "a3"):
        world.find(name, source=None)
    assert len(world.jobs) == 2


def test_a_look_up_that_never_returns_does_not_hold_its_name_for_ever(world, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0)
    monkeypatch.setattr(module, "_ATTEMPTS", 2)
    world.find("db")
    hung = world.jobs.pop()
    world.find("db")
    world.run()
    world.find("db")
    world.run()
    assert world.looked_up == ["db", "db"] and len(world.told) == 2  # the first client still waits for the first one
    hung()
    assert len(world.told) == 3
    world.find("db")
    world.run()
    assert len(world.told) == 4


def test_a_hung_name_takes_few_threads(world, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0)
    monkeypatch.setattr(module, "_ATTEMPTS", 2)
    for _ in range(10):
        world.find("db", source="a")
    assert len(world.jobs) == 2
    world.jobs.reverse()  # the later one ends first
    world.run()
    assert len(world.told) == 9
    world.find("db", source="b")  # of the two threads one is free again
    assert len(world.jobs) == 2
    world.run_all()
    assert len(world.told) == 11


def test_a_look_up_that_is_not_late_is_joined(world):
    world.find("db")
    world.find("db")
    assert len(world.jobs) == 1
    world.run()


@pytest.mark.parametrize(
    ("host", "key"), [("DB.Example", "db.example"), ("FE80::1%Eth0", "fe80::1%Eth0"), ("10.0.0.1", "10.0.0.1")]
)
def test_names_are_equal_whatever_their_case_but_interfaces_are_not(host, key):
    assert key_of(host) == key


FOUND = [Endpoint(socket.AF_INET6, ("::1", 80, 0, 0)), Endpoint(socket.AF_INET, ("127.0.0.1", 80))]


class Directory:
    """A name whose look-up returns or raises what the test sets."""

    host = "db.example"

    def __init__(self, answer):
        self.answer = answer

    def look_up(self):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def endpoints(self, found):
        if isinstance(found, BaseException):
            raise ConnectError("db.example: cannot be resolved") from found
        return found


def test_the_addresses_of_a_name():
    assert resolved(Directory(FOUND)) == FOUND


@pytest.mark.parametrize("error", [socket.gaierror(-2, "no such name"), UnicodeError("no name")])
def test_a_failure_is_that_of_the_name(error):
    with pytest.raises(ConnectError, match="cannot be resolved"):
        resolved(Directory(error))


def test_a_bound_name_has_the_addresses_of_its_sources_family():
    name = BoundName("db.example:80", Directory(FOUND), Source(socket.AF_INET, "127.1.2.3"))
    assert name.host == "db.example"  # so that an engine looks it up once for all sources
    assert resolved(name) == [FOUND[1]._replace(source=("127.1.2.3", 0))]
    name = BoundName("db.example:80", Directory(FOUND), Source(socket.AF_INET, "192.0.2.1"))
    assert resolved(name) == [FOUND[1]._replace(source=("192.0.2.1", 0))]


def test_a_bound_name_keeps_the_error_of_the_look_up():
    with pytest.raises(ConnectError, match="cannot be resolved"):
        resolved(BoundName("db", Directory(OSError("x")), Source(socket.AF_INET, "127.1.2.3")))
