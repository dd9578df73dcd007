"""The lines of a command on standard error."""

import logging

import pytest
from helpers import WAIT

from relay.cli import output


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """As long as it takes: a busy machine may need more than 2 s for the lines."""
    monkeypatch.setattr(output, "PATIENCE", WAIT)


def test_a_line_of_the_command_follows_the_lines_of_the_log_that_came_before(capfd):
    with output.logged_to_stderr("text", verbose=True, debug=False):
        for number in range(300):
            logging.getLogger("relay.cli").info("%d tunnels listen", number)
        output.print_error("one: wrong key")
        assert capfd.readouterr().err.splitlines()[-1] == "relay: one: wrong key"


def test_no_line_of_the_log_is_endless(capfd):
    with output.logged_to_stderr("text", verbose=True, debug=False):
        logging.getLogger("relay").warning("it says %s\n\x1b[2J", "x" * 100_000)
        output.print_error("y" * 100_000)
    logged, printed = capfd.readouterr().err.splitlines()
    for line, letter in ((logged, "x"), (printed, "y")):
        assert line.endswith(f"{letter}…") and len(line) < output.LONGEST_LINE + 10


@pytest.mark.parametrize(
    ("level", "own"), [("DEBUG", "DEBUG"), ("INFO", "INFO"), ("WARNING", "INFO"), ("ERROR", "ERROR")]
)
def test_what_the_command_itself_does_is_logged_with_warnings(level, own):
    output.log_from(logging.getLevelNamesMapping()[level])
    assert logging.getLogger("relay.cli").getEffectiveLevel() == logging.getLevelNamesMapping()[own]
    assert logging.getLogger("relay.ssh").getEffectiveLevel() == logging.getLevelNamesMapping()[level]
