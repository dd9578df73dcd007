"""Passwords and passphrases, wherever they come from."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from relay import AuthenticationError
from relay.addresses.ssh import SSHServer
from relay.transports.credentials import passphrase_of, password_of, wants_prompt

HIDDEN = "correct horse"


def written(path: Path, data: bytes, mode: int = 0o600) -> str:
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


def test_nothing_is_known() -> None:
    assert password_of(SSHServer("host")) is None
    assert passphrase_of(SSHServer("host"), "/key") is None


def test_text_is_returned_as_it_is() -> None:
    assert password_of(SSHServer("host", password=" p w ")) == " p w "
    assert passphrase_of(SSHServer("host", passphrase=HIDDEN), "/key") == HIDDEN


def test_a_callable_without_argument_is_called() -> None:
    assert password_of(SSHServer("host", password=lambda: HIDDEN)) == HIDDEN


def test_a_callable_with_an_argument_gets_the_question() -> None:
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return HIDDEN

    server = SSHServer("host", "me", password=answer, passphrase=answer)
    assert password_of(server) == password_of(server, "Code: ") == passphrase_of(server, "/key") == HIDDEN
    assert asked == ["me@host's password: ", "Code: ", "Passphrase for /key: "]


@pytest.mark.parametrize(
    ("secret", "wants"),
    [
        (None, False),
        ("text", False),
        (lambda: "", False),
        (lambda prompt: "", True),
        (lambda prompt="": "", True),
        (lambda a, b: "", False),
        (partial(lambda word: word, "x"), False),
        (dict, False),
    ],
)
def test_who_takes_a_question(secret: Any, wants: bool) -> None:
    assert wants_prompt(secret) is wants


def test_a_callable_that_fails_is_one_line_and_its_error_the_cause() -> None:
    def fail() -> str:
        raise KeyError(HIDDEN)

    with pytest.raises(AuthenticationError, match=r"^ssh://host: .*password raised KeyError") as raised:
        password_of(SSHServer("host", password=fail))
    assert HIDDEN not in str(raised.value) and isinstance(raised.value.__cause__, KeyError)


def test_a_callable_that_returns_no_text_is_told_so() -> None:
    with pytest.raises(AuthenticationError, match="returned bytes, not text"):
        password_of(SSHServer("host", password=lambda: b"x"))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("data", [b"correct horse", b"correct horse\n", b"correct horse\r\nand more\n"])
def test_a_files_first_line(tmp_path: Path, data: bytes) -> None:
    assert password_of(SSHServer("host", password_file=written(tmp_path / "f", data))) == HIDDEN


@pytest.mark.parametrize(
    ("text", "secret"),
    [("word\n", "word"), ("word\r\n", "word"), ("word\r", "word\r"), (" word \n", " word "), ("word\r\r\n", "word\r")],
)
def test_exactly_one_line_end_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, secret: str
) -> None:
    assert password_of(SSHServer("host", password_file=written(tmp_path / "f", text.encode()))) == secret
    monkeypatch.setenv("RELAY_WORD", text)
    assert password_of(SSHServer("host", password_env="RELAY_WORD")) == secret


def test_a_mark_that_editors_put_in_front_is_no_part_of_a_secret(tmp_path: Path) -> None:
    path = written(tmp_path / "f", b"\xef\xbb\xbfword\r\n")
    assert password_of(SSHServer("host", password_file=path)) == "word"


def test_a_line_end_alone_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_WORD", "\n")
    with pytest.raises(AuthenticationError, match="RELAY_WORD.*empty"):
        password_of(SSHServer("host", password_env="RELAY_WORD"))


def test_a_file_is_read_at_every_use(tmp_path: Path) -> None:
    server = SSHServer("host", passphrase_file=written(tmp_path / "f", b"old"))
    assert passphrase_of(server, "/key") == "old"
    written(tmp_path / "f", b"new")
    assert passphrase_of(server, "/key") == "new"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused_with_its_mode(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "f", b"correct horse", mode)
    with pytest.raises(AuthenticationError, match=f"{path}.*{mode:04o}.*chmod 600") as raised:
        password_of(SSHServer("host", password_file=path))
    assert HIDDEN not in str(raised.value)


def test_files_that_are_of_no_use(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path, problem in (
        (str(tmp_path / "none"), "No such file"),
        (str(tmp_path), "directory|not a regular file"),
        (str(tmp_path / "fifo"), "not a regular file"),
        (written(tmp_path / "empty", b"\nsecond"), "first line.*empty"),
    ):
        with pytest.raises(AuthenticationError, match=problem) as raised:
            password_of(SSHServer("host", password_file=path))
        assert "\n" not in str(raised.value)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    server = SSHServer("host", password_env="RELAY_WORD")
    monkeypatch.setenv("RELAY_WORD", HIDDEN)
    assert password_of(server) == HIDDEN
    monkeypatch.setenv("RELAY_WORD", "")
    with pytest.raises(AuthenticationError, match="RELAY_WORD.*empty"):
        password_of(server)
    monkeypatch.delenv("RELAY_WORD")
    with pytest.raises(AuthenticationError, match="RELAY_WORD.*not set"):
        password_of(server)


def test_no_secret_is_shown() -> None:
    server = SSHServer("host", password=HIDDEN, passphrase=HIDDEN)
    assert HIDDEN not in repr(server) and HIDDEN not in str(server)
