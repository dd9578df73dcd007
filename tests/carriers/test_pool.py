"""``relay.carriers.pool.CarrierRef``: acquired with the first use; ``acquire`` is in test_carrier.py."""

import gc
import threading

import pytest
from carrier_rig import Connector
from helpers import WAIT, Thread, in_child, wait_until

from relay.carriers.carrier import Carrier
from relay.carriers.link import CarrierState
from relay.carriers.pool import CarrierRef


class World:
    """Makes carriers, and remembers them."""

    def __init__(self):
        self.carriers = []
        self.errors = []

    def make(self):
        if self.errors:
            raise self.errors.pop()
        self.carriers.append(Carrier("c", Connector(), None))
        return self.carriers[-1]

    def holder(self, key="k"):
        return CarrierRef("c", key, self.make)


@pytest.fixture
def world():
    made = World()
    yield made
    for carrier in made.carriers:
        carrier.close()


def up(carrier):
    wait_until(lambda: carrier.state is CarrierState.UP)
    return carrier


def test_nothing_is_made_before_it_is_needed(world):
    holder = world.holder()
    assert holder.current is None and repr(holder) == "c, not held"
    carrier = up(holder.carrier())
    assert holder.current is holder.carrier() is carrier and len(world.carriers) == 1
    assert repr(holder) == "c, up"
    holder.close()
    assert carrier.state is CarrierState.CLOSED and holder.current is None


def test_a_carrier_that_somebody_else_has_closed_is_made_anew(world):
    holder = world.holder()
    first = up(holder.carrier())
    first.close()
    second = up(holder.carrier())
    assert second is not first
    holder.close()
    assert second.state is CarrierState.CLOSED


def test_those_who_ask_for_the_same_share_it_and_the_last_one_ends_it(world):
    one, other, third = world.holder(), world.holder(), world.holder("another")
    shared = up(one.carrier())
    assert other.carrier() is shared and third.carrier() is not shared
    one.close()
    assert shared.state is CarrierState.UP
    other.close()
    assert shared.state is CarrierState.CLOSED
    third.close()


def test_many_threads_hold_one_carrier(world):
    holders = [world.holder() for _ in range(4)]
    barrier = threading.Barrier(16)

    def use(holder):
        barrier.wait(WAIT)
        return holder.carrier()

    threads = [Thread(use, holder) for holder in holders * 4]
    assert {id(thread.result()) for thread in threads} == {id(world.carriers[0])}
    carrier = up(world.carriers[0])
    for holder in holders:
        assert carrier.state is CarrierState.UP
        holder.close()
    assert carrier.state is CarrierState.CLOSED


def test_what_cannot_be_made_is_made_later(world):
    world.errors.append(OSError("no descriptor"))
    holder = world.holder()
    with pytest.raises(OSError, match="no descriptor"):
        holder.carrier()
    assert holder.current is None
    up(holder.carrier())
    holder.close()


def test_a_watcher_follows_it_to_the_next_carrier(world):
    holder, seen = world.holder(), []
    holder.subscribe(lambda state, error: seen.append(state))
    up(holder.carrier())
    holder.close()
    wait_until(lambda: seen[-1:] == [CarrierState.CLOSED])
    seen.clear()
    up(holder.carrier())
    wait_until(lambda: CarrierState.UP in seen)
    holder.close()


def test_a_watcher_that_could_not_subscribe_is_called_once_after_the_next_time(world):
    holder, seen = world.holder(), []

    def watcher(state, error):
        seen.append(state)

    world.errors.append(OSError("no descriptor"))
    with pytest.raises(OSError, match="no descriptor"):
        holder.subscribe(watcher)
    holder.subscribe(watcher)
    up(holder.carrier())
    wait_until(lambda: CarrierState.UP in seen)
    holder.close()
    wait_until(lambda: CarrierState.CLOSED in seen)
    assert seen.count(CarrierState.UP) == seen.count(CarrierState.CLOSED) == 1


def test_a_watcher_of_one_holder_is_not_told_after_that_has_let_go(world):
    one, other, seen = world.holder(), world.holder(), []
    one.subscribe(lambda state, error: seen.append(state))
    carrier = up(other.carrier())
    one.close()
    seen.clear()
    other.close()
    assert carrier.state is CarrierState.CLOSED and seen == []


def test_it_does_not_wait_for_streams_for_long(world):
    holder = world.holder()
    carrier = up(holder.carrier())
    link = carrier.link
    link.streams = 1
    holder.close(drain_timeout=0.0)
    holder.close(drain_timeout=0.0)
    assert carrier.state is CarrierState.UP
    link.end_streams()
    wait_until(lambda: carrier.state is CarrierState.CLOSED)


def test_it_is_taken_up_again_while_a_stream_uses_it(world):
    first, second = world.holder(), world.holder()
    carrier = up(first.carrier())
    carrier.link.streams = 1
    first.close(drain_timeout=0.0)
    assert second.carrier() is carrier
    carrier.link.end_streams()
    assert carrier.state is CarrierState.UP
    second.close()
    assert carrier.state is CarrierState.CLOSED


def test_a_holder_that_is_forgotten_has_let_go(world):
    holder = world.holder()
    carrier = up(holder.carrier())
    del holder
    gc.collect()
    wait_until(lambda: carrier.state is CarrierState.CLOSED)


def test_a_forked_child_makes_its_own(world):
    holder = world.holder()
    carrier = up(holder.carrier())
    assert in_child(lambda: holder.carrier() is not carrier and carrier.state is CarrierState.CLOSED) == 0
    assert carrier.state is CarrierState.UP
    holder.close()
