"""``relay.carriers.retry``: the back-off, its jitter, and the failures that no retry repairs."""

import pytest

from relay.carriers.retry import RetryPolicy
from relay.errors import CarrierError, ConnectError
from relay.eventloop import backoff

REFUSED = ConnectError("c: connection refused", reason="refused")
LOST = CarrierError("c: gone")


@pytest.fixture
def exact(monkeypatch):
    """No jitter."""
    monkeypatch.setattr(backoff, "jittered", lambda seconds: seconds)


def test_the_delays_are_jittered():
    error = CarrierError("c: another relay serves it")
    error.pause = 4.0
    policy = RetryPolicy()
    for draw in (
        lambda: policy.next_delay(error, has_waiters=False),
        lambda: RetryPolicy().next_delay(LOST, has_waiters=False),
        policy.delay_with_waiter,
    ):
        assert len({draw() for _ in range(64)}) > 32


def test_it_doubles_up_to_its_limits(exact):
    policy = RetryPolicy(max_backoff=5.0)
    delays = [policy.next_delay(LOST, has_waiters=False) for _ in range(8)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert policy.next_delay(REFUSED, has_waiters=False) == 5.0
    assert policy.next_delay(LOST, has_waiters=True) == policy.delay_with_waiter() == 2.0


def test_an_error_may_have_a_pause_of_its_own_and_does_not_count(exact):
    error = CarrierError("c: another relay serves it")
    error.pause = 20.0
    policy = RetryPolicy()
    assert [policy.next_delay(error, has_waiters=waiters) for waiters in (False, True)] == [20.0, 20.0]
    assert policy.next_delay(LOST, has_waiters=False) == 0.5


def test_a_connection_after_a_failure_or_another_one_is_a_recovery():
    policy = RetryPolicy()
    assert not policy.connected()
    assert policy.connected()
    policy = RetryPolicy()
    policy.next_delay(LOST, has_waiters=False)
    assert policy.connected()


def test_the_same_point_of_the_login_three_times_is_final():
    policy = RetryPolicy()
    at_login, at_banner = CarrierError("c: ended", stage="login"), CarrierError("c: ended", stage="banner")
    assert [policy.give_up_on(error) for error in (at_login, at_login, at_banner, at_login, at_login)] == [None] * 5
    final = policy.give_up_on(at_login)
    assert final is not None and final.final and final.stage == "login" and str(final) == "c: ended; 3 times in a row"


def test_the_same_failure_is_logged_five_times():
    policy = RetryPolicy()
    enough = []
    for _ in range(7):
        policy.next_delay(LOST, has_waiters=False)
        enough.append(policy.has_logged_enough())
    assert enough == [False] * 5 + [True] * 2
