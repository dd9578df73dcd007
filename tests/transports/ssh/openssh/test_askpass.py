"""The server of ssh's helpers: real helpers as ssh runs them, and callers that are none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import WAIT, receive_all

from relay.addresses.ssh import SSHServer
from relay.eventloop.loop import Loop
from relay.transports.ssh.connection import Settings
from relay.transports.ssh.openssh import helper
from relay.transports.ssh.openssh.askpass import AskpassServer

HELPER = [sys.executable, "-I", "-S", str(Path(helper.__file__))]
SERVER = SSHServer("bastion", password=lambda prompt: f"answer to {prompt}", passphrase="open sesame")


@pytest.fixture
def askpass(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Makes one in a loop of its own, and returns its path; ``askpass.failed`` collects what went wrong."""
    loop = Loop()
    servers: list[AskpassServer] = []

    def make(server: SSHServer = SERVER, connection: socket.socket | None = None, failed: Any = print) -> str:
        path = str(tmp_path / "askpass")
        settings = Settings(server, "bastion.example", 22, "me", identities=("/home/me/.ssh/id", "/k" * 80))
        servers.append(AskpassServer(loop, path, settings, connection, failed))
        thread.start()
        return path

    thread = threading.Thread(target=loop.run)
    yield make
    loop.call(lambda: (servers[0].close(), loop.stop()))
    thread.join(WAIT)
    loop.close()


def ask(path: str, question: str, **environment: str) -> tuple[int, str]:
    argv = [*HELPER, "secret", path, question]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT, env={**os.environ, **environment})
    return run.returncode, run.stdout


def test_our_own_questions_are_answered(askpass: Callable[..., str]) -> None:
    path = askpass()
    for question in ("me@bastion.example's password: ", "(me@BASTION.example) One-time code: "):
        assert ask(path, question) == (0, f"answer to {question}\n")
    for key in ("/home/me/.ssh/id", ("/k" * 80)[:100]):
        assert ask(path, f"Enter passphrase for key '{key}': ") == (0, "open sesame\n")


@pytest.mark.parametrize(
    "question",
    [
        "me@jump.example's password: ",
        "root@bastion.example's password: ",
        "(me@jump.example) me@bastion.example's password: ",
        "Enter passphrase for key '/home/other/key': ",
        "Enter PIN for ED25519-SK key /home/me/.ssh/id: ",
        "Are you sure you want to continue connecting (yes/no)? ",
        "Enter me@bastion.example's new password: ",
        "",
    ],
)
def test_questions_of_others_are_not(askpass: Callable[..., str], question: str) -> None:
    assert ask(askpass(), question) == (1, "")


def test_confirmations_are_not(askpass: Callable[..., str]) -> None:
    assert ask(askpass(), "me@bastion.example's password: ", SSH_ASKPASS_PROMPT="confirm") == (1, "")


def test_a_secret_that_cannot_be_had_is_told(askpass: Callable[..., str]) -> None:
    failed: list[Any] = []
    path = askpass(SSHServer("bastion", password_env="NO_SUCH_VARIABLE"), failed=failed.append)
    assert ask(path, "me@bastion.example's password: ") == (1, "")
    assert "NO_SUCH_VARIABLE" in str(failed[0])


def test_a_connection_is_handed_over_once(askpass: Callable[..., str]) -> None:
    ours, theirs = socket.socketpair()
    path = askpass(connection=theirs)
    mine, its = socket.socketpair()
    with ours, theirs, mine, its:
        argv = [*HELPER, "connection", path]
        assert subprocess.run(argv, stdout=its, timeout=WAIT).returncode == 0
        with socket.socket(fileno=socket.recv_fds(mine, 1, 1)[1][0]) as passed:
            passed.sendall(b"over it")
        assert ours.recv(100) == b"over it"
        assert subprocess.run(argv, stdout=its, timeout=WAIT).returncode == 1


@pytest.mark.parametrize("words", [b"", b"nonsense\0", b"x" * 10000, b"secret", b"secret\0" + b"x" * 10000])
def test_callers_that_make_no_sense_get_nothing(askpass: Callable[..., str], words: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(WAIT)
        caller.connect(askpass())
        try:
            caller.sendall(words)
            caller.shutdown(socket.SHUT_WR)
            assert receive_all(caller) == b""
        except ConnectionError:
            pass


def test_a_pinned_key_alone_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert helper.main("hostkey", "SHA256:a", "HOSTNAME", "SHA256:a", "[h]:2", "ssh-ed25519", "AAAA") == 0
    assert capsys.readouterr().out == "[h]:2 ssh-ed25519 AAAA\n"
    assert helper.main("hostkey", "SHA256:a", "HOSTNAME", "SHA256:b", "h", "ssh-ed25519", "AAAA") == 0
    assert helper.main("hostkey", "SHA256:a", "ORDER", "NONE", "h", "NONE", "NONE") == 0
    assert capsys.readouterr().out == ""


def test_a_secret_that_ssh_would_cut_is_an_error(askpass: Callable[..., str]) -> None:
    failed: list[OSError] = []
    path = askpass(SSHServer("bastion", password="one\ntwo"), failed=failed.append)
    assert ask(path, "me@bastion's password: ")[0] == 1
    assert "line break" in str(failed[0])
    assert "two" not in str(failed[0])
