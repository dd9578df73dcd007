"""``relay.carriers.dialer``: streams over a carrier, whatever it is made of, and waiting for one."""

import queue
import select
import socket
import threading
import time

import pytest
from carrier_rig import Connector, turned
from helpers import WAIT, Thread, wait_until

import relay
from relay.carriers import retry
from relay.carriers.carrier import Carrier
from relay.carriers.dialer import dial, wait_until_up
from relay.carriers.link import CarrierState
from relay.errors import CarrierError, ConnectError, HostKeyError, RelayError
from relay.streams.promise import Cancellation


class World:
    """A carrier, and what its attempts and its streams come to."""

    def __init__(self):
        self.connector = Connector()
        self.links = self.connector.links
        self.carrier = Carrier("c", self.connector, None)
        self.carrier.begin()
        self.outcomes = []  # of the next streams; a stream where there is none
        self.begun = []  # the links under the streams
        self.given_up = threading.Event()
        self.far = []

    def begin(self, link, told):
        self.begun.append(link)
        outcome = self.outcomes.pop(0) if self.outcomes else self.stream()
        if outcome is not None:
            told(outcome)
        return self.given_up.set

    def stream(self):
        near, far = socket.socketpair()
        self.far.append(far)
        return relay.Stream(near)

    def dial(self, seconds=WAIT, **options):
        """Begin a stream; its outcome comes out of the queue."""
        told = queue.SimpleQueue()
        deadline = None if seconds is None else time.monotonic() + seconds
        return told, dial(self.carrier, self.begin, deadline, told.put, **options)

    def end(self):
        self.carrier.close()
        for far in self.far:
            far.close()


def held_back(cancel):
    select.select([cancel], [], [], WAIT)
    return ConnectError("c: the attempt was given up")


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(retry, "_BACKOFF", (0.01, 0.02))
    made = World()
    wait_until(lambda: made.carrier.state is CarrierState.UP)
    yield made
    made.end()


def lose(world, *attempts):
    """The next attempts come to this."""
    world.connector.outcomes[:] = attempts
    world.links[0].lose()
    wait_until(lambda: world.carrier.link is not world.links[0])


LOST = CarrierError("c: gone")
REFUSED = ConnectError("the target: connection refused", reason="refused")


def test_a_stream_is_begun_over_the_link(world):
    told, _ = world.dial()
    with told.get(timeout=WAIT) as stream:
        assert isinstance(stream, relay.Stream)
        assert [number for number, _ in stream.path.steps] == [2], "the link was up"
        assert (stream.path.carrier, stream.path.attempts) == ("c", 1)
    assert world.begun == world.links


def test_it_waits_for_the_link(world):
    go = threading.Event()
    lose(world, lambda cancel: go.wait(WAIT) and None)
    told, _ = world.dial()
    turned(world.carrier)
    go.set()
    with told.get(timeout=WAIT) as stream:
        assert [number for number, _ in stream.path.steps] == [1, 2]
        assert all(0 < seconds < WAIT for _, seconds in stream.path.steps)


def test_a_stream_under_which_the_link_is_lost_is_begun_again_on_the_next(world):
    world.outcomes = [LOST]
    told, _ = world.dial()
    with told.get(timeout=WAIT) as stream:
        assert stream.path.attempts == 2
    assert len(world.links) == 2 and world.begun == world.links


def test_it_is_not_begun_for_ever(world):
    world.outcomes = [LOST] * 9
    told, _ = world.dial()
    assert told.get(timeout=WAIT) is LOST
    assert len(world.begun) == 4


def test_an_error_of_its_own_ends_it(world):
    world.outcomes = [REFUSED]
    told, _ = world.dial()
    assert told.get(timeout=WAIT) is REFUSED
    assert len(world.begun) == 1


def test_what_is_final_is_told_as_an_oserror(world):
    lose(world, ValueError("odd"))
    wait_until(lambda: world.carrier.state is CarrierState.FAILED)
    told, _ = world.dial()
    error = told.get(timeout=WAIT)
    assert isinstance(error, RelayError) and str(error) == "ValueError: odd"


def test_who_is_not_patient_is_told_of_one_attempt(world):
    lose(world, *[ConnectError("c: refused")] * 99)
    wait_until(lambda: world.carrier.state is CarrierState.BACKING_OFF)
    told, _ = world.dial(None, wait_for_reconnect=False)
    assert str(told.get(timeout=WAIT)) == "c: refused"


def test_the_deadline_holds_while_it_waits(world):
    lose(world, held_back)
    told, _ = world.dial(0.05)
    assert told.get(timeout=WAIT).reason == "connect_timeout"


def test_who_gives_up_while_it_is_begun_undoes_that(world):
    world.outcomes = [None]
    told, give_up = world.dial()
    give_up()
    give_up()
    assert world.given_up.is_set() and told.empty()


def test_one_that_cannot_be_begun_is_told(world):
    def fail(link, told):
        raise ValueError("a bug")

    told = queue.SimpleQueue()
    dial(world.carrier, fail, None, told.put)
    error = told.get(timeout=WAIT)
    assert isinstance(error, RelayError) and str(error) == "ValueError: a bug"


def test_giving_up_what_is_there_does_nothing(world):
    told, give_up = world.dial()
    stream = told.get(timeout=WAIT)
    give_up()
    assert not world.given_up.is_set() and stream.fileno() >= 0
    stream.close()


def test_waiting(world):
    assert wait_until_up(world.carrier, time.monotonic() + WAIT, None, wait_for_reconnect=True) is world.links[0]


def test_waiting_raises_what_is_wrong_each_time_anew(world):
    error = HostKeyError("c: changed")
    lose(world, error)
    wait_until(lambda: world.carrier.state is CarrierState.FAILED)
    for _ in range(2):
        with pytest.raises(HostKeyError, match="c: changed") as caught:
            wait_until_up(world.carrier, None, None, wait_for_reconnect=True)
        assert caught.value is not error


def test_waiting_raises_only_oserrors(world):
    lose(world, ValueError("odd"))
    wait_until(lambda: world.carrier.state is CarrierState.FAILED)
    with pytest.raises(RelayError, match="ValueError: odd") as caught:
        wait_until_up(world.carrier, None, None, wait_for_reconnect=True)
    assert isinstance(caught.value.__cause__, ValueError)


def test_waiting_can_be_cancelled(world):
    lose(world, held_back)
    cancel = Cancellation()
    waiting = Thread(lambda: wait_until_up(world.carrier, None, cancel, wait_for_reconnect=True))
    turned(world.carrier)
    cancel.set()
    with pytest.raises(ConnectError, match="c: the attempt was given up"):
        waiting.result()
    turned(world.carrier)
    cancel.close()


def test_waiting_has_its_deadline(world):
    lose(world, held_back)
    with pytest.raises(ConnectError, match="c: not connected in time: the line went dead"):
        wait_until_up(world.carrier, time.monotonic() + 0.05, None, wait_for_reconnect=True)
