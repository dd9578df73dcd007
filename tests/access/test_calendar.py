"""The periods of quotas, in UTC."""

from __future__ import annotations

import datetime

import pytest

from relay.access.calendar import Calendar
from relay.access.limit import Period


@pytest.mark.parametrize(
    ("period", "time", "begin"),
    [
        (Period.HOUR, "2026-11-21T22:59:59", "2026-11-21T22:00:00"),
        (Period.DAY, "2026-11-21T22:59:59", "2026-11-21T00:00:00"),
        (Period.WEEK, "2026-11-22T23:59:59", "2026-11-16T00:00:00"),
        (Period.WEEK, "2026-11-23T00:00:00", "2026-11-23T00:00:00"),
        (Period.MONTH, "2026-12-31T23:59:59", "2026-12-01T00:00:00"),
        (Period.MONTH, "2027-01-01T00:00:00", "2027-01-01T00:00:00"),
        (Period.MONTH, "2028-02-29T12:00:00", "2028-02-01T00:00:00"),
    ],
)
def test_the_beginning_of_a_period(period: Period, time: str, begin: str) -> None:
    def wall(text: str) -> float:
        return datetime.datetime.fromisoformat(text + "+00:00").timestamp()

    calendar = Calendar(period)
    assert calendar.begin(0.0) == pytest.approx(0.0, abs=7 * 86400)
    assert calendar.begin(wall(time)) == calendar.begin(wall(time)) == wall(begin)
