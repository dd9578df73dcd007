"""The problem and the advice of an error."""

import pytest

from relay.cli.doctor.wording import ADVICE, split
from relay.errors import ConnectError


@pytest.mark.parametrize(
    ("name", "text", "problem", "advice"),
    [
        ("connect", "db:1: refused; start it", "refused", "start it"),
        ("connect", "db:1: refused; start it; or not", "refused", "start it; or not"),
        ("connect", "refused", "refused", ADVICE["connect"]),
        ("connect", "other:1: refused", "other:1: refused", ADVICE["connect"]),
        ("login", "db:1: rejected; tried a; offered b; fix it", "rejected; tried a; offered b", "fix it"),
        ("no such step", "refused", "refused", ""),
    ],
)
def test_an_error_without_a_remedy_gets_that_of_its_step(name, text, problem, advice):
    assert split(name, ConnectError(text), "db:1") == (problem, advice)


def test_an_error_of_the_system_has_its_text_without_its_number():
    assert split("connect", OSError(111, "Connection refused"), "db:1")[0] == "Connection refused"


def test_what_is_no_exception_of_a_program_has_its_text():
    assert split("connect", KeyboardInterrupt("stop"), "db:1")[0] == "stop"
