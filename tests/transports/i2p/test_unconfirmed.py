"""``relay.transports.i2p.unconfirmed``: open streams on which no byte has come yet."""

import socket
import time

import pytest
from helpers import closed, wait_until

import relay
from relay.testing import pair
from relay.transports.i2p import unconfirmed as module
from relay.transports.i2p.unconfirmed import SILENT, UnconfirmedStream, UnconfirmedStreams


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.due = {}

    def set(self, item, due):
        self.due[item] = due

    def drop(self, item):
        self.due.pop(item, None)


class World:
    """Trials, and what is reported of them."""

    def __init__(self):
        self.clock = Clock()
        self.silent, self.answered, self.left = [], [], []
        self.unconfirmed = UnconfirmedStreams(self.clock, self.silent.append, self.answered.append)
        self.now = time.monotonic()
        self.open = []

    def begin(self, dest="a", read=0, family=socket.AF_UNIX):
        near, far = pair(family)
        self.open += [near, far]
        unconfirmed = UnconfirmedStream(self.unconfirmed, dest, read, lambda: self.left.append(dest))
        stream = relay.Stream(near)
        stream.answered = False
        self.unconfirmed.add(unconfirmed, stream, self.now)
        return unconfirmed, stream, far

    def wait(self, seconds):
        self.now += seconds
        for unconfirmed in [unconfirmed for unconfirmed, due in self.clock.due.items() if due <= self.now]:
            del self.clock.due[unconfirmed]
            unconfirmed.expire(self.now)

    def close(self):
        for end in self.open:
            end.close()


@pytest.fixture
def world():
    yield from closed(World())


def test_a_stream_without_a_byte_is_doubted_once_in_time(world):
    _, stream, _ = world.begin()
    stream.received = lambda: 0
    world.wait(SILENT - 1)
    assert not world.silent
    world.wait(1)
    assert world.silent == ["a"] and not world.answered
    world.wait(10 * SILENT)
    assert world.silent == ["a"]


def test_a_stream_with_a_byte_is_not(world):
    _, stream, _ = world.begin()
    stream.received = lambda: 1
    world.wait(SILENT)
    assert not world.silent and world.answered == ["a"]


def test_one_that_is_over_is_not_looked_at(world):
    unconfirmed, stream, _ = world.begin("a")
    stream.received = lambda: pytest.fail("it is over") if world.left else 0
    _, other, _ = world.begin("b")
    other.received = lambda: 0
    unconfirmed.end()
    assert world.left == ["a"] and len(world.clock.due) == 1
    world.wait(SILENT)
    assert world.silent == ["b"] and not world.clock.due


def test_one_that_ends_with_bytes_is_an_answer(world):
    unconfirmed, stream, _ = world.begin("a")
    stream.received = lambda: 1
    unconfirmed.end()
    unconfirmed, stream, _ = world.begin("b")
    stream.answered = True
    unconfirmed.end()
    unconfirmed, stream, _ = world.begin("c")
    unconfirmed.end()
    assert world.answered == ["a", "b"]


@pytest.mark.skipif(module._TCP_INFO is None, reason="only Linux tells how much a connection has received")
def test_where_nobody_counts_the_kernel_does(world):
    _, _, far = world.begin("a", family=socket.AF_INET)
    _, _, other = world.begin("b", read=4, family=socket.AF_INET)
    _, _, third = world.begin("c", read=4, family=socket.AF_INET)
    far.sendall(b"x")
    other.sendall(b"line")
    third.sendall(b"line and more")
    wait_until(lambda: all(module._bytes_received(end) for end in world.open[::2]))
    world.wait(SILENT)
    assert world.silent == ["b"] and world.answered == ["a", "c"]


def test_where_nobody_can_tell_nobody_is_doubted(world, monkeypatch):
    world.begin("a")
    monkeypatch.setattr(module, "_TCP_INFO", None)
    world.begin("b", family=socket.AF_INET)
    world.wait(SILENT)
    assert not world.silent and not world.answered


def in_vain(world, dest, seconds):
    """A client waits for so long and gives up."""
    unconfirmed, stream, _ = world.begin(dest)
    stream.received = lambda: 0
    unconfirmed.opened -= seconds
    unconfirmed.end()


def test_clients_who_give_up_sooner_are_counted_together(world):
    for _ in range(4):
        in_vain(world, "a", SILENT / 4 + 0.1)
        in_vain(world, "b", 0.0)
        assert not world.silent
    world.begin("b")
    assert not world.silent
    world.begin("a")
    assert world.silent == ["a"]
    world.begin("a")
    assert world.silent == ["a"], "and from the beginning then"


def test_an_answer_makes_up_for_those_who_gave_up(world):
    in_vain(world, "a", SILENT)
    unconfirmed, stream, _ = world.begin("b")
    stream.answered = True
    unconfirmed.end()
    in_vain(world, "b", SILENT - 1)
    unconfirmed, stream, _ = world.begin("b")
    stream.answered = True
    unconfirmed.end()
    in_vain(world, "b", 2.0)
    world.begin("b")
    assert not world.silent


def test_destinations_that_are_remembered_are_bounded(world, monkeypatch):
    monkeypatch.setattr(module, "MOST", 3)
    for dest in ("a", "b", "c", "d", "e"):
        in_vain(world, dest, SILENT)
    world.begin("a")
    assert not world.silent, "forgotten"
    world.begin("e")
    assert world.silent == ["e"]
