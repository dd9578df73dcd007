"""``relay.carriers.link``: a waiter for a carrier gets one outcome, in time, or none."""

import time
from types import SimpleNamespace

import pytest
from helpers import WAIT

from relay.carriers.link import Waiter, strip_prefix
from relay.errors import CarrierError, ConnectError
from relay.eventloop.loop import Timers


@pytest.fixture
def carrier():
    """A carrier as a waiter sees it; it calls a function at once."""
    dropped = []
    made = SimpleNamespace(name="c", error=None, dropped=dropped, remove_waiter=dropped.append, calls=0)

    def call(function):
        made.calls += 1
        function()
        return True

    made.call = call
    return made


def test_who_has_given_up_is_not_told(carrier):
    told = []
    waiter = Waiter(carrier, told.append, None, True)
    waiter.give_up()
    waiter.give_up()
    waiter.resolve("the link")
    assert told == []
    assert carrier.dropped == [waiter] and carrier.calls == 1


def test_giving_up_after_the_outcome_costs_the_io_thread_nothing(carrier):
    waiter = Waiter(carrier, lambda outcome: None, None, True)
    waiter.resolve("the link")
    waiter.give_up()
    assert carrier.calls == 0


@pytest.mark.parametrize(
    ("error", "why"), [(None, "no answer yet"), (CarrierError("c: gone"), "gone"), (OSError("odd"), "odd")]
)
def test_its_deadline_says_what_is_wrong(carrier, error, why):
    timers, told = Timers(), []
    carrier.error = error
    waiter = Waiter(carrier, told.append, time.monotonic(), True)
    waiter.start(timers)
    timers.run(time.monotonic() + WAIT)
    assert isinstance(told[0], ConnectError) and told[0].reason == "connect_timeout"
    assert str(told[0]) == f"c: not connected in time: {why}"
    assert carrier.dropped == [waiter]


def test_a_name_is_said_once():
    assert strip_prefix("c", CarrierError("c: gone")) == "gone"
    assert strip_prefix("c", CarrierError("d: gone")) == "d: gone"
