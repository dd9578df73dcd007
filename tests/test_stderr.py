"""``relay.process``: lines of others in the log, bounded."""

from __future__ import annotations

import logging

import pytest

from relay import process
from relay.process import StandardError, program_error


@pytest.fixture
def lines(caplog):
    """What the log has."""
    caplog.set_level(logging.INFO, "relay")
    return lambda: [one.getMessage() for one in caplog.records]


@pytest.fixture
def now(monkeypatch):
    """A clock that the test sets."""
    time = [5.0]
    monkeypatch.setattr(process.time, "monotonic", lambda: time[0])
    return time


def test_lines_are_put_together(lines):
    said = StandardError("exec:x")
    for piece in b"on", b"e\ntw", b"o\r\n", b"\n", b"  \nthe e", b"nd":
        said.feed(piece)
    assert said.last == "two"
    said.end()
    said.end()
    assert said.last == "the end"
    assert lines() == ["exec:x: one", "exec:x: two", "exec:x: the end"]


def test_the_lines_of_a_chunk_and_of_a_second_are_counted(lines, now):
    said = StandardError("exec:x")
    said.feed(b"first\n")
    said.feed(b"".join(b"%d\n" % number for number in range(1, 1000)) + b"be")
    assert said.last == "999"
    assert len(lines()) == process._RATE
    now[0] = 6.0
    said.feed(b"gun\n")
    assert lines()[-2:] == [f"exec:x: it said {1000 - process._RATE} lines more", "exec:x: begun"]
    said.feed(b"the end")
    said.end()
    assert said.last == "the end"


def test_a_line_without_end_is_cut_and_takes_no_memory(lines):
    said = StandardError("exec:x")
    for _ in range(100):
        said.feed(b"x" * 65536)
        assert len(said._rest) <= process._LONGEST
    said.feed(b"\nshort\n")
    assert lines() == [f"exec:x: {'x' * process._LONGEST}", "exec:x: short"]


def test_what_is_not_printable_is_not_printed(lines):
    said = StandardError("exec:x")
    said.feed(b"\x1b[31mred\0 \xff\x9b ok\n")
    assert lines() == ["exec:x: [31mred  \ufffd\ufffd ok"]


def test_an_error_tells_how_and_why():
    assert str(program_error("exec:x", "ended with status 1", "no more")) == "exec:x: ended with status 1 (no more)"
    error = program_error("exec:x", "was ended by SIGKILL", "")
    assert str(error) == "exec:x: was ended by SIGKILL"
    assert error.reason == "target_reset"
