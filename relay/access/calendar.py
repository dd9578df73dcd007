"""The periods of quotas, by the calendar in UTC."""

from __future__ import annotations

import datetime

from .limit import Period

_LENGTHS = {Period.HOUR: 3600, Period.DAY: 86400, Period.WEEK: 7 * 86400}  # seconds
_MONDAY = 4 * 86400  # the first Monday after the epoch, which was a Thursday


class Calendar:
    """Tells when the period has begun that a time is in; the answer is kept until it changes.

    :param period: of the quota.
    """

    __slots__ = ("_period", "_begin", "_end")

    def __init__(self, period: Period) -> None:
        self._period = period
        self._begin = self._end = 0.0

    def begin(self, wall: float) -> float:
        """Return when the period began.

        :param wall: seconds since the epoch.
        """
        if not self._begin <= wall < self._end:
            self._begin, self._end = self._find(wall)
        return self._begin

    def _find(self, wall: float) -> tuple[float, float]:
        if self._period is Period.MONTH:
            day = datetime.datetime.fromtimestamp(wall, datetime.UTC).replace(
                day=1, hour=0, minute=0, second=0, microsecond=0
            )
            following = (day + datetime.timedelta(days=32)).replace(day=1)
            return day.timestamp(), following.timestamp()
        length = _LENGTHS[self._period]
        offset = _MONDAY if self._period is Period.WEEK else 0
        begin = (wall - offset) // length * length + offset
        return begin, begin + length
