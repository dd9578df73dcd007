"""``relay.streams.rate_limited_log``: what may happen a thousand times a second is a line a minute; none is lost."""

from __future__ import annotations

import logging

import pytest

from relay.eventloop.loop import Timers
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


def test_with_timers_the_last_one_of_a_minute_has_a_line_with_the_number(caplog: pytest.LogCaptureFixture) -> None:
    timers = Timers()
    log = RateLog(logging.getLogger("relay"), logging.WARNING, 2, timers)
    for second in (100.0, 101.0, 102.0, 103.0, 104.0):
        log.log(second, "%s", second)
    for second in range(105, 300):
        timers.run(float(second))
    log.log(300.0, "%s", 300.0)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines == ["100.0", "101.0", "104.0; 2 more like this since the last such line", "300.0"]


def test_one_that_was_left_out_is_logged_as_it_is_at_the_end_of_its_minute(caplog: pytest.LogCaptureFixture) -> None:
    timers = Timers()
    log = RateLog(logging.getLogger("relay"), logging.WARNING, 1, timers)
    log.log(0.0, "first")
    log.log(1.0, "second")
    for second in range(2, 70):
        timers.run(float(second))
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines == ["first", "second"]


def test_a_traceback_follows_where_there_is_one(caplog: pytest.LogCaptureFixture) -> None:
    log = RateLog(logging.getLogger("relay"), logging.ERROR)
    log.log(0.0, "it failed", error=ValueError("a bug"))
    assert "ValueError: a bug" in caplog.text
