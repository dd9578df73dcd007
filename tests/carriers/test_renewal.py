"""``relay.carriers.renewal``: when a link is replaced by plan."""

import logging

import pytest

from relay.carriers import renewal
from relay.carriers.link import CarrierState
from relay.carriers.renewal import renew
from relay.errors import AuthenticationError
from relay.eventloop.loop import Timers

HOUR = 3600.0


class Carrier:
    """A carrier that counts its replacements."""

    def __init__(self):
        self.timers = Timers()
        self.links = self
        self.replaced = 0  # links with streams
        self.link = object()
        self.renewed = []
        self.replacement_error = None
        self.watchers = []
        self.subscribe = self.watchers.append

    def replace(self, link, why, level):
        assert link is self.link
        self.renewed.append((why, level))

    def change(self, state):
        for watcher in self.watchers:
            watcher(state, None)


@pytest.fixture
def carrier(monkeypatch):
    made = Carrier()
    made.now = 1000.0
    made.spread = 1.0
    monkeypatch.setattr(renewal.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(renewal.random, "uniform", lambda least, most: least + (most - least) * made.spread)

    def after(seconds):
        made.now += seconds
        made.timers.run(made.now)
        return len(made.renewed)

    made.after = after
    return made


def test_without_a_time_there_is_none(carrier):
    renew(carrier, None)
    assert carrier.watchers == []


@pytest.mark.parametrize(("spread", "seconds"), [(1.0, HOUR), (0.0, 0.9 * HOUR)])
def test_a_link_is_renewed_in_time_or_up_to_a_tenth_earlier(carrier, spread, seconds):
    carrier.spread = spread
    renew(carrier, HOUR)
    carrier.change(CarrierState.UP)
    assert (carrier.after(seconds - 1), carrier.after(2)) == (0, 1)
    assert carrier.renewed == [("it was up for 3600 s (renew_after)", logging.INFO)]


def test_a_new_link_begins_its_time_anew_and_a_lost_one_has_none(carrier):
    renew(carrier, HOUR)
    carrier.change(CarrierState.UP)
    carrier.after(HOUR / 2)
    carrier.change(CarrierState.UP)
    assert carrier.after(HOUR / 2 + 1) == 0
    carrier.change(CarrierState.BACKING_OFF)
    assert carrier.after(10 * HOUR) == 0


def test_a_renewal_that_fails_is_tried_again_after_a_tenth_of_the_time(carrier):
    renew(carrier, HOUR)
    carrier.change(CarrierState.UP)
    carrier.after(HOUR + 1)
    assert (carrier.after(HOUR / 10 - 2), carrier.after(2)) == (1, 2)


@pytest.mark.parametrize(("time", "pause"), [(HOUR, HOUR), (60.0, 300.0)])
def test_a_renewal_that_was_rejected_waits_for_all_of_the_time_or_five_minutes(carrier, time, pause):
    renew(carrier, time)
    carrier.change(CarrierState.UP)
    carrier.after(time + 1)
    for attempts in (1, 2):
        carrier.replacement_error = AuthenticationError("c: rejected")
        assert carrier.after(time / 10 + 1) == attempts
        assert (carrier.after(pause - 1), carrier.after(2)) == (attempts, attempts + 1)


def test_while_several_old_links_have_streams_there_is_no_further_one(carrier):
    renew(carrier, HOUR)
    carrier.change(CarrierState.UP)
    carrier.replaced = 4
    assert carrier.after(HOUR + 1) == 0
    carrier.replaced = 3
    assert carrier.after(HOUR / 10 + 1) == 1
