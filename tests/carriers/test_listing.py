"""``relay.carriers.listing``: what operators see of the carriers."""

import time

from carrier_rig import Connector, outcome_of
from helpers import wait_until

from relay.carriers.carrier import Carrier
from relay.carriers.listing import carriers
from relay.errors import ConnectError


def status_of(carrier):
    return next(status for status in carriers() if status.name == carrier.name)


def test_a_carrier_that_is_up_shows_its_streams_and_since_when():
    carrier = Carrier("ssh://me@here", Connector(), None, kind="ssh")
    try:
        before = time.time()
        status = status_of(carrier)
        assert (status.state, status.rtt, sum(status.metrics.counts)) == ("connecting", None, 0)
        carrier.begin()
        outcome_of(carrier).streams = 3
        status = status_of(carrier)
        assert (status.kind, status.state, status.streams, status.losses) == ("ssh", "up", 3, 0)
        assert (status.error, status.rtt) == ("", 0.25)
        assert sum(status.metrics.counts) == 1
        assert before - 1 < status.since < time.time() + 1
    finally:
        carrier.close()
        assert carrier.join(None)
    assert carrier.name not in [status.name for status in carriers()]


def test_losses_are_counted_and_the_error_is_shown_without_the_name():
    connector = Connector(None, None, *[ConnectError("c: no route")] * 9)
    carrier = Carrier("c", connector, None)
    try:
        carrier.begin()
        for number in (1, 2):
            wait_until(lambda: carrier.link is not None)
            carrier.link.lose()
            wait_until(lambda number=number: status_of(carrier).losses == number)
            if number == 1:
                assert status_of(carrier).error in ("the line went dead", "")  # it may be up again
                carrier.when_up(lambda _: None, None, wait_for_reconnect=False)  # starts the attempt at once
        wait_until(lambda: status_of(carrier).error)  # it comes after the loss is counted
        assert not status_of(carrier).error.startswith("c:")
    finally:
        carrier.close()
        assert carrier.join(None)


def test_they_are_in_the_order_of_their_names():
    made = [Carrier(name, Connector(), None) for name in ("b", "c", "a")]
    try:
        assert [status.name for status in carriers() if status.name in "abc"] == ["a", "b", "c"]
    finally:
        for carrier in made:
            carrier.close()
            assert carrier.join(None)
