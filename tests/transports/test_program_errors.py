"""``relay.transports.program_errors``: why a program was not started, and how one has ended."""

from __future__ import annotations

import pytest

from relay.errors import ConnectError, RelayError
from relay.transports.program_errors import end_error, missing, start_error


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("no-such-program", "there is no no-such-program in PATH; install it, or give its whole path"),
        ("/no/such/program", "there is no /no/such/program; check the spelling"),
        ("/", "/ is not an executable file; check the path, or run chmod +x"),
    ],
)
def test_a_missing_program(program, text):
    assert missing(program) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(24, "Too many open files"), "exec:it: cannot be started: Too many open files"),
        (RuntimeError("no thread"), "exec:it: cannot be started: no thread"),
    ],
)
def test_a_program_that_was_not_started(error, text):
    made = start_error("exec:it", error)
    assert isinstance(made, ConnectError)
    assert str(made) == text


def test_an_error_of_relay_stays_as_it_is():
    error = RelayError("relay ends")
    assert start_error("exec:it", error) is error


@pytest.mark.parametrize(
    ("status", "last", "text"),
    [
        (3, "", "exec:it: ended with status 3"),
        (1, "no such host", "exec:it: ended with status 1 (no such host)"),
        (-15, "", "exec:it: was ended by SIGTERM"),
        (-63, "last words", "exec:it: was ended by signal 63 (last words)"),
    ],
)
def test_a_failure_at_its_end(status, last, text):
    made = end_error("exec:it", status, last)
    assert str(made) == text
    assert made.reason == "target_reset"


def test_status_0_is_no_failure():
    assert end_error("exec:it", 0, "last words") is None
