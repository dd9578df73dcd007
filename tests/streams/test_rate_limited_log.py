"""``relay.streams.rate_limited_log``: what may happen a thousand times a second is a line a minute; none is lost."""

from __future__ import annotations

import logging

import pytest

from relay.streams.rate_limited_log import RateLog


def test_the_first_is_logged_at_once_and_the_others_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "relay")
    log = RateLog(logging.getLogger("relay"), logging.WARNING)
    for second in (100.0, 101.0, 159.9, 160.0, 161.0, 300.0, 400.0):
        log.log(second, "%s: an event", second)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    more = "; {} more like this since the last such line"
    assert lines == [
        "100.0: an event",
        "160.0: an event" + more.format(2),
        "300.0: an event" + more.format(1),
        "400.0: an event",
    ]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG] == [
        "101.0: an event",
        "159.9: an event",
        "161.0: an event",
    ]


def test_there_may_be_more_lines_in_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    log = RateLog(logging.getLogger("relay"), logging.WARNING, 3)
    for second in (0.0, 1.0, 2.0, 3.0, 59.0, 60.0, 61.0):
        log.log(second, "%s", second)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines == ["0.0", "1.0", "2.0", "60.0; 2 more like this since the last such line", "61.0"]
