"""Which address next, and when: RFC 8305, driven without a network."""

from __future__ import annotations

import errno
import socket

from hypothesis import given
from hypothesis import strategies as st

from relay.eventloop.sockets import Endpoint
from relay.streams.happy_eyeballs import ATTEMPT_DELAY, HappyEyeballs, interleave

FOUR = [Endpoint(socket.AF_INET, (f"127.0.0.{n}", 1)) for n in range(1, 4)]
SIX = [Endpoint(socket.AF_INET6, (f"::{n}", 1, 0, 0)) for n in range(1, 4)]


def test_families_alternate_and_the_resolvers_first_comes_first() -> None:
    assert interleave([SIX[0], SIX[1], FOUR[0], FOUR[1]]) == [SIX[0], FOUR[0], SIX[1], FOUR[1]]
    assert interleave([FOUR[0], FOUR[0]]) == [FOUR[0]]


def test_the_second_address_waits_its_turn() -> None:
    race = HappyEyeballs([SIX[0], FOUR[0]])
    assert race.next(10.0) == SIX[0]
    assert race.next(10.0 + ATTEMPT_DELAY / 2) is None
    assert race.again == 10.0 + ATTEMPT_DELAY
    assert race.next(10.0 + ATTEMPT_DELAY) == FOUR[0]
    assert race.again is None
    assert not race.lost


def test_a_failure_starts_the_next_at_once_and_the_first_error_is_told() -> None:
    race = HappyEyeballs([SIX[0], FOUR[0]])
    race.next(10.0)
    first = OSError(errno.ENETUNREACH, "no route")
    race.failed(first)
    assert race.next(10.0) == FOUR[0]
    race.failed(OSError(errno.ECONNREFUSED, "refused"))
    assert race.lost
    assert race.error is first


@given(st.lists(st.sampled_from(FOUR + SIX), max_size=12), st.lists(st.booleans(), max_size=40))
def test_every_address_is_tried_exactly_once(endpoints: list[Endpoint], fails: list[bool]) -> None:
    race, now, tried, running = HappyEyeballs(endpoints), 0.0, [], 0
    outcomes = iter(fails)
    while not race.lost:
        while (endpoint := race.next(now)) is not None:
            tried.append(endpoint)
            running += 1
        if race.again is not None and next(outcomes, False):
            now = race.again
        elif running:
            race.failed(OSError())
            running -= 1
    assert sorted(tried) == sorted(set(endpoints))
