"""``relay.carriers.carrier_set``: several carriers of one hop, of which new streams use the healthiest."""

import functools
import logging
import math
import queue
import threading
import time

import pytest
from carrier_rig import REFUSED, Connector, Link, outcome_of
from helpers import WAIT, makes, wait_until

from relay.carriers import carrier_set, retry
from relay.carriers.carrier import Carrier
from relay.carriers.carrier_set import CarrierSet, make_carriers
from relay.carriers.link import CarrierState
from relay.carriers.listing import carriers
from relay.carriers.pool import CarrierRef
from relay.errors import AuthenticationError, CarrierError, ConnectError

DENIED = AuthenticationError("c: rejected")


class World:
    """A set of carriers, each with its connector."""

    def __init__(self, count):
        self.connectors = [Connector() for _ in range(count)]
        self.set = make_carriers(count, self.make)

    def make(self, number):
        return Carrier("c", self.connectors[number - 1], None, number=number, kind="test")

    @property
    def links(self):
        return [carrier.link for carrier in self.set.carriers]

    def up(self):
        self.set.begin()
        wait_until(lambda: None not in self.links)
        return self.links

    def outcome(self, timeout=WAIT, **options):
        return outcome_of(self.set, timeout, **options)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(retry, "_BACKOFF", (0.01, 0.02))


@pytest.fixture
def world():

    def close(made):
        made.set.close()
        assert made.set.join(WAIT)

    yield from makes(lambda count=2: World(count), close)


def test_a_single_one_is_no_set():
    made = make_carriers(1, lambda number: Carrier("c", Connector(), None, number=number))
    assert isinstance(made, Carrier) and made.number is None
    made.close()


def test_the_rest_is_closed_if_one_cannot_be_made():
    made = []

    def make(number):
        if number == 2:
            raise OSError("no threads left")
        made.append(Carrier("c", Connector(), None, number=number))
        return made[-1]

    with pytest.raises(OSError, match="threads"):
        make_carriers(3, make)
    assert made[0].join(WAIT)


def test_each_begins_once_the_one_before_is_up(world):
    """A rejected login is rejected once, and not by all of them."""
    rig = world(3)
    rig.connectors[0].errors = [DENIED]
    rig.set.begin()
    assert str(rig.outcome()) == str(DENIED)
    assert (rig.set.state, rig.set.error) == (CarrierState.FAILED, DENIED)
    assert [connector.attempts for connector in rig.connectors] == [1, 0, 0]
    rig.connectors[0].errors = []
    rig.set.carriers[0].since -= 301
    rig.set.retry_failed()
    wait_until(lambda: None not in rig.links)


@pytest.mark.parametrize(
    ("streams", "doubtful", "best"),
    [
        ((0, 0), (False, False), 0),
        ((1, 0), (False, False), 1),
        ((1, 1), (False, False), 0),
        ((0, 5), (True, False), 1),
        ((2, 1), (True, True), 1),
    ],
)
def test_new_streams_use_the_healthiest_and_then_the_one_with_fewer_streams(world, streams, doubtful, best):
    rig = world()
    links = rig.up()
    for link, count, is_doubtful in zip(links, streams, doubtful, strict=True):
        link.streams, link.is_doubtful = count, is_doubtful
    assert rig.set.link is links[best] is rig.outcome()
    for link in links:
        link.streams = 0


def test_nobody_waits_for_a_lost_one_while_another_is_up(world):
    rig = world()
    first, second = rig.up()
    rig.connectors[0].errors = [REFUSED]
    first.lose()
    wait_until(lambda: rig.links[0] is None)
    told = []
    rig.set.when_up(told.append, None)
    assert told == [second] and rig.set.link is second
    assert (rig.set.state, rig.set.error) == (CarrierState.UP, None)
    rig.connectors[0].errors = []
    wait_until(lambda: None not in rig.links)


def test_a_stream_that_failed_because_its_link_is_lost_gets_the_other_link_at_once(world):
    rig = world()
    first, second = rig.up()
    told = []
    rig.set.when_up(told.append, None, instead_of=(first, first.error))
    assert told == [second]
    assert first.closed.wait(WAIT)  # its carrier knows now
    assert not second.closed.is_set()


@pytest.mark.parametrize("first", [0, 1])
def test_who_waits_gets_the_first_that_is_up_again(world, first):
    rig = world()
    links = rig.up()
    for connector in rig.connectors:
        connector.errors = [REFUSED]
    for link in links:
        link.lose()
    wait_until(lambda: rig.links == [None, None])
    told = queue.SimpleQueue()
    rig.set.when_up(told.put, time.monotonic() + WAIT)
    given_up = []
    rig.set.when_up(given_up.append, time.monotonic() + WAIT)()
    rig.connectors[first].errors = []
    assert told.get(timeout=WAIT) is rig.connectors[first].links[-1]
    assert given_up == []


def test_who_waits_for_one_attempt_gets_an_error_when_all_have_failed(world):
    rig = world()
    links = rig.up()
    for connector in rig.connectors:
        connector.errors = [REFUSED]
    assert isinstance(rig.outcome(instead_of=(links[0], links[0].error)), Link)
    links[1].lose()
    wait_until(lambda: rig.links == [None, None])
    assert str(rig.outcome(wait_for_reconnect=False)) == str(REFUSED)
    assert rig.outcome(timeout=0.01).reason == "connect_timeout"


def test_the_watchers_get_the_state_of_the_best_one(world):
    rig = world()
    seen = []
    first, second = rig.up()
    rig.set.subscribe(lambda state, error: seen.append(state))
    rig.connectors[0].errors = rig.connectors[1].errors = [REFUSED]
    first.lose()
    wait_until(lambda: rig.links[0] is None)
    assert set(seen) <= {CarrierState.UP}
    second.lose()
    wait_until(lambda: CarrierState.BACKING_OFF in seen)
    assert rig.set.error is not None


def test_one_that_has_failed_for_good_is_tried_again_although_no_client_asks_for_it(world, monkeypatch):
    monkeypatch.setattr(carrier_set, "_RETRY_FAILED_EVERY", 0.01)
    monkeypatch.setattr("relay.carriers.retry.RETRY_REJECTED_AFTER", 0.0)
    rig = world()
    rig.connectors[1].errors = [DENIED]
    rig.set.begin()
    wait_until(lambda: rig.connectors[1].attempts > 1)
    assert rig.set.state is CarrierState.UP
    rig.connectors[1].errors = []
    wait_until(lambda: None not in rig.links)


def run(rig, function=lambda: None):
    """Call a function on the I/O thread, after everything that was to be called before."""
    called = threading.Event()
    assert rig.set.call(lambda: (function(), called.set()))
    assert called.wait(WAIT)


def test_a_rejected_login_is_not_repeated_while_none_is_up_until_a_client_asks(world, monkeypatch, caplog):
    monkeypatch.setattr("relay.carriers.retry.RETRY_REJECTED_AFTER", 0.0)
    rig = world()
    rig.connectors[0].errors = [AuthenticationError("c: rejected")]
    rig.set.begin()
    wait_until(lambda: rig.set.state is CarrierState.FAILED)
    run(rig, lambda: rig.set._retry_in_time(0.0))
    assert (rig.set.state, rig.connectors[0].attempts) == (CarrierState.FAILED, 1)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line == (
        "c (carrier 1): rejected; will not retry until a client connects more than 0 s later, "
        "or for 5 minutes while another carrier is up"
    )
    rig.connectors[0].errors = []
    assert rig.outcome() is rig.links[0]


def test_one_that_was_not_tried_again_because_none_was_up_is_when_another_one_returns(world, monkeypatch):
    monkeypatch.setattr(retry, "_BACKOFF", (600.0, 600.0))
    rig = world()
    rig.connectors[1].errors = [DENIED]
    rig.set.begin()
    wait_until(lambda: rig.set.carriers[1].state is CarrierState.FAILED)
    rig.links[0].lose()
    wait_until(lambda: rig.set.state is CarrierState.BACKING_OFF)
    run(rig, rig.set._retry.stop)
    run(rig, lambda: rig.set._retry_in_time(0.0))
    rig.set.carriers[0].call(rig.set.carriers[0]._attempt)
    wait_until(lambda: rig.set.state is CarrierState.UP)
    run(rig)
    assert rig.set._retry.due < math.inf


def test_one_that_fails_while_all_are_closed_leaves_no_timer(world):
    rig = world()
    first, second = rig.set.carriers
    close = second.close

    def fail_and_close(**options):
        first.call(lambda: rig.set._on_change(CarrierState.FAILED, DENIED))
        close(**options)

    second.close = fail_and_close
    rig.set.begin()
    wait_until(lambda: rig.links[0] is not None)
    rig.set.close(wait=False)
    assert rig.set.join(WAIT)
    assert rig.set._retry.due == math.inf


def test_a_server_that_allows_one_login_is_logged_once(world, caplog):
    caplog.set_level(logging.INFO, "relay")
    rig = world()
    rig.connectors[1].errors = [ConnectError("c: too many logins")]
    rig.set.begin()
    wait_until(lambda: rig.connectors[1].attempts > 8)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.partition(";")[0] for line in warnings] == ["c (carrier 2): too many logins"]
    assert rig.set.link is rig.links[0]


def test_operators_see_each_of_them(world):
    rig = world()
    rig.up()
    found = [(one.number, one.state) for one in carriers() if one.kind == "test"]
    assert found == [(1, "up"), (2, "up")]


def test_callers_with_the_same_key_share_the_set_and_it_ends_with_its_last_stream(world):
    rig = world()
    one, other = (CarrierRef("c", "key of the set", lambda: rig.set) for _ in range(2))
    assert one.carrier() is other.carrier() is rig.set
    wait_until(lambda: None not in rig.links)
    links = rig.links
    links[0].streams = links[1].streams = 1
    one.close()
    other.close(0.0)
    for link in links:
        assert rig.set.state is CarrierState.UP
        link.end_streams()
    wait_until(lambda: rig.set.state is CarrierState.CLOSED)
    assert all(link.closed.wait(WAIT) for link in links)


def test_a_set_that_is_taken_up_again_is_not_closed_by_the_earlier_release(world):
    rig = world()
    first, second = rig.up()
    called = []
    second.streams = 1
    rig.set.when_idle(lambda: called.append("earlier"))
    wait_until(lambda: second.idle_call is not None)
    first.streams, first.idle_call = 1, None
    rig.set.when_idle(lambda: called.append("later"))
    second.end_streams()
    first.end_streams()
    wait_until(lambda: called)
    assert called == ["later"]


def test_after_the_close_it_says_so(world):
    rig = world()
    rig.up()
    assert repr(rig.set) == "<relay.CarrierSet c, up>"
    rig.set.close()
    rig.set.close(wait=False)
    assert isinstance(rig.set, CarrierSet) and rig.set.state is CarrierState.CLOSED
    assert isinstance(rig.outcome(), CarrierError)


@pytest.mark.parametrize("count", [1, 2])
def test_streams_over_a_link_that_was_replaced_go_on_when_the_new_one_is_lost_and_nobody_holds_it(count):
    connectors = [Connector() for _ in range(count)]
    make = functools.partial(make_carriers, count, lambda number: Carrier("c", connectors[(number or 1) - 1], None))
    holder = CarrierRef("c", object(), make)
    shared = holder.carrier()
    carriers_made = getattr(shared, "carriers", [shared])
    wait_until(lambda: all(carrier.link is not None for carrier in carriers_made))
    carrier = carriers_made[0]
    old = carrier.link
    old.streams = 1
    carrier.replace(old, "it is old")
    wait_until(lambda: carrier.link is not old)
    for connector in connectors:
        connector.errors = [REFUSED]
        connector.links[-1].lose()
    wait_until(lambda: shared.link is None)
    holder.close(0.0)
    done = threading.Event()
    assert carrier.call(done.set) and done.wait(WAIT)
    assert not old.closed.is_set()
    old.end_streams()
    assert shared.join(WAIT) and old.closed.wait(WAIT)
