"""``relay.eventloop.backoff``: pauses that double, up to a maximum, and their jitter."""

import pytest

from relay.eventloop.backoff import Backoff, jittered


def test_the_pauses_double_up_to_the_maximum():
    backoff = Backoff(0.5, 30.0)
    assert [backoff.next() for _ in range(9)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert backoff.failures == 9


def test_a_success_ends_the_row():
    backoff = Backoff(0.5, 30.0)
    backoff.next()
    backoff.next()
    backoff.reset()
    assert (backoff.failures, backoff.next(), backoff.next()) == (0, 0.5, 1.0)


def test_one_pause_may_have_a_maximum_of_its_own_and_counts():
    backoff = Backoff(1.0, 4.0)
    assert [backoff.next(0.25), backoff.next(100.0), backoff.next(100.0), backoff.next(100.0)] == [0.25, 2.0, 4.0, 4.0]


@pytest.mark.parametrize("longest", [30.0, float("inf")])
def test_a_row_without_an_end_is_no_error(longest):
    backoff = Backoff(0.5, longest)
    backoff.failures = 100_000
    assert 30.0 <= backoff.next() <= longest


def test_jitter_takes_up_to_a_half():
    drawn = {jittered(4.0) for _ in range(64)}
    assert len(drawn) > 32 and all(2.0 <= one <= 4.0 for one in drawn)


def test_the_pauses_are_jittered_on_demand():
    backoff = Backoff(4.0, 4.0, jitter=True)
    drawn = {backoff.next() for _ in range(64)}
    assert len(drawn) > 32 and all(2.0 <= one <= 4.0 for one in drawn)
