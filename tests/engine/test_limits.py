"""Which limits can be, and when an open connection is first looked at."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest

from relay.engine.limits import Limits
from relay.streams.checks import check_count, check_time


@pytest.mark.parametrize(
    ("given", "taken"), [(1, 1.0), (0.5, 0.5), (Decimal("2.5"), 2.5), (None, None), (math.inf, None)]
)
def test_a_time_is_a_number_of_seconds_or_none(given: Any, taken: float | None) -> None:
    assert check_time("timeout", given) == taken


@pytest.mark.parametrize("given", [True, "60", b"60", [], object()])
def test_what_is_not_a_number_is_named(given: Any) -> None:
    with pytest.raises(TypeError, match="idle_timeout: expected a number of seconds or None"):
        check_time("idle_timeout", given)


@pytest.mark.parametrize("given", [-1, -0.001, math.nan, -math.inf, 0])
def test_what_cannot_be_a_limit_is_named(given: float) -> None:
    with pytest.raises(ValueError, match="timeout: must be greater than 0, got"):
        check_time("timeout", given)


def test_a_number_that_no_float_can_hold() -> None:
    with pytest.raises(ValueError, match="timeout: number too large; use None"):
        check_time("timeout", 10**5000)


def test_zero_is_allowed_where_it_means_something() -> None:
    assert check_time("linger", 0, zero=True) == 0.0
    with pytest.raises(ValueError, match="at least 0"):
        check_time("linger", -1, zero=True)


@pytest.mark.parametrize(("given", "error"), [(0, ValueError), (-2, ValueError), (1.0, TypeError), (True, TypeError)])
def test_a_count_is_positive_or_minus_one(given: Any, error: type) -> None:
    assert check_count(-1) == -1
    assert check_count(7) == 7
    with pytest.raises(error, match="nconnect"):
        check_count(given)


@pytest.mark.parametrize(
    ("limits", "first"),
    [
        (Limits(None, 30, None, None), None),
        (Limits(3600, 30, 600, 60), 60),
        (Limits(5, 30, 600, 60), 5),
        (Limits(None, 30, 2, 0), 2),
    ],
)
def test_the_first_look_is_at_the_shortest_limit_that_matters(limits: Limits, first: float | None) -> None:
    assert limits.first_check == first
