"""The last lines of the log."""

import logging
import weakref

import pytest

from relay.daemon.recent_log import LINES, LONGEST, RecentLog

logger = logging.getLogger("relay.test")


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.DEBUG, "relay")
    made = RecentLog()
    made.install()
    yield made
    made.close()


def test_it_has_the_last_lines_oldest_first(log):
    for number in range(LINES + 5):
        logger.warning("line %d", number)
    lines = log.lines()
    assert [line.message for line in lines] == [f"line {number}" for number in range(5, LINES + 5)]
    assert {(line.level, line.logger) for line in lines} == {("warning", "relay.test")}
    assert lines[0].time <= lines[-1].time


def test_a_finished_connection_is_left_out(log):
    logger.info("done", extra={"connection": object()})
    logger.info("next")
    assert [line.message for line in log.lines()] == ["next"]


def test_hostile_text_is_one_short_line_without_control_characters(log):
    logger.error("%s", "a\nb\x1b[31m\u202e<b>" + "x" * 10_000)
    (line,) = log.lines()
    assert line.message.startswith(r"a b\x1b[31m\u202e<b>xxx")
    assert line.message.isprintable()
    assert len(line.message) < LONGEST + 50


@pytest.mark.parametrize("error", [KeyError, RuntimeError])
def test_a_record_without_a_text_is_left_out_and_disturbs_nobody(log, error):
    class Argument:
        def __str__(self):
            raise error("no text")

    log.handle(logging.LogRecord("relay.test", logging.INFO, "", 0, "%s", (Argument(),), None))
    assert log.lines() == ()


def test_it_keeps_no_argument_alive(log):
    class Argument:
        pass

    argument = Argument()
    alive = weakref.ref(argument)
    logger.handlers, before = [], logger.handlers
    logger.info("%s", argument)
    logger.handlers = before
    assert "Argument" in log.lines()[0].message
    assert not [line for line in log.lines() if not all(isinstance(part, (str, float)) for part in line)]
    assert alive() is argument


def test_a_line_with_wrong_arguments_is_no_error(log, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.info("%d", "no number")
    assert log.lines() == ()


def test_afterwards_it_takes_nothing(log):
    logger.info("one")
    log.close()
    log.close()
    logger.info("two")
    assert [line.message for line in log.lines()] == ["one"]
