"""The real OpenSSH server of the tests."""

import pytest
from sshd import RealServer


class Speaker(RealServer):
    """A program that says something, and ends."""

    ready = "words"

    def command(self):
        return ["sh", "-c", "printf 'first\\nlast words' >&2"]


def test_its_last_words_need_no_end_of_line(tmp_path):
    server = Speaker(tmp_path).start()
    server.wait_for("(end of the log)")
    server.stop()
    assert server.log().splitlines() == ["first", "last words", "(end of the log)"]


def test_one_that_cannot_start_says_why(make_sshd):
    with pytest.raises(AssertionError, match="NoSuchOption"):
        make_sshd("NoSuchOption yes")
