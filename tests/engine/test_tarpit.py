"""A stay in the tarpit ends by its time or with its client, and only once."""

import resource
import socket
import struct

import pytest
from helpers import WAIT

from relay.engine import tarpit
from relay.engine.tarpit import TarpitStay, take_place
from relay.eventloop.loop import Loop
from relay.eventloop.poller import END, ERR, HUP
from relay.testing import pair


@pytest.fixture
def connected():
    """Both ends of a TCP connection, that of the relay first."""
    near, far = pair(socket.AF_INET)
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def stay(connected):
    loop = Loop()
    ends = []
    try:
        assert take_place()
        stay = TarpitStay(connected[0], loop, ends.append)
        stay.begin(60.0, 100.0)
        yield stay, loop, ends
        assert tarpit._places._taken == 0
    finally:
        loop.close()


def test_it_ends_when_the_time_is_over(stay):
    stay, loop, ends = stay
    loop.timers.run(150.0)
    assert ends == []
    loop.timers.run(170.0)
    assert ends == [170.0]


def test_other_events_change_nothing_and_the_end_of_the_client_ends_it(stay, connected):
    _, loop, ends = stay
    on_event = loop.handlers[connected[0].fileno()]
    on_event(0, 101.0)
    assert ends == []
    on_event(ERR | HUP, 102.0)
    assert ends == [102.0]
    loop.timers.run(1000.0)
    assert ends == [102.0]


@pytest.mark.parametrize("event", [event for event in (END, ERR, HUP) if event])  # not each system has END
def test_each_event_that_is_an_end_of_the_client_ends_it(stay, connected, event):
    _, loop, ends = stay
    loop.handlers[connected[0].fileno()](event, 101.0)
    assert ends == [101.0]


def test_the_loop_tells_it_of_a_client_that_has_reset(stay, connected):
    _, loop, ends = stay
    near, far = connected
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    far.close()
    ((descriptor, event),) = loop.poller.poll(WAIT, 1)
    assert descriptor == near.fileno()
    loop.handlers[descriptor](event, 101.0)
    assert ends == [101.0]


def test_it_can_be_abandoned_and_a_bug_ends_it(stay):
    stay, loop, ends = stay
    stay.too_late()
    stay.after_fork()
    stay.abandon()
    stay.abandon()
    loop.timers.run(1000.0)
    assert ends == []
    stay.crashed(1001.0)
    assert ends == [1001.0]


@pytest.mark.parametrize(
    ("limit", "most"), [(0, 1), (1, 1), (15, 1), (24, 3), (8 * 1024, 1024), (1 << 20, 1024), (-1, 1024)]
)
def test_the_tunnels_of_a_process_share_a_part_of_its_descriptors(monkeypatch, limit, most):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    places = tarpit._Places()
    assert [places.take() for _ in range(most + 1)] == [True] * most + [False]
    places.give_back()
    assert [places.take(), places.take()] == [True, False]
    places.after_fork()
    assert places.take()
