"""``relay ctl`` believes this user, root, and the owner of the directory of the socket, and no other user."""

import contextlib
import json
import os
import socket

import pytest
from command_rig import run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")

OTHER = 4242  # a user who is neither root nor the one who runs the tests
FORGED = {"tunnels": [], "config": "forged", "version": "9", "pid": 1, "started": 0, "workers": []}


@contextlib.contextmanager
def answering(path, body, user=OTHER):
    """A program of another user that listens at a path, and gives one answer to every request."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        os.chown(path, user, -1)
        ready, told = os.pipe()
        child = os.fork()
        if not child:
            os.setgroups([])
            os.setgid(OTHER)
            os.setuid(user)
            listener.listen()  # whose user a client sees
            os.write(told, b".")
            while True:
                with listener.accept()[0] as client, contextlib.suppress(OSError):
                    while client.recv(65536):
                        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                        client.sendall(head % len(body) + body)
        try:
            os.close(told)
            assert os.read(ready, 1) == b"."
            yield
        finally:
            os.close(ready)
            os.kill(child, 9)
            os.waitpid(child, 0)


@pytest.fixture
def folder(tmp_path):
    """A directory in which every user may put files, as in /tmp."""
    made = tmp_path / "shared"
    made.mkdir()
    made.chmod(0o1777)
    return made


@pytest.mark.parametrize("body", [json.dumps(FORGED).encode(), b"[" * 200_000], ids=["forged", "deep"])
@pytest.mark.parametrize("words", [["status"], ["list"], ["stop"], ["reload"]])
def test_another_user_listens_there(folder, body, words):
    with answering(folder / "c.sock", body):
        done = run("ctl", "--control", str(folder / "c.sock"), *words)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"relay: control socket {folder}/c.sock: another user (ID {OTHER}) answers, neither you, root nor the "
        "directory's owner; check who listens\n"
    )


def test_the_socket_of_another_user_is_none_of_a_running_relay(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    with answering(tmp_path / "c.sock", json.dumps(FORGED).encode()):
        done = run("ctl", "status")
    assert "no relay with a control socket is running" in done.stderr


def test_root_may_ask_the_relay_of_another_user_in_the_directory_of_this_user(folder):
    os.chown(folder, OTHER, -1)
    with answering(folder / "c.sock", b"[" * 200_000):
        done = run("ctl", "--control", str(folder / "c.sock"), "status")
    assert done.returncode == 1
    assert done.stderr == f"relay: {folder}/c.sock: the answer is not JSON\n"


@pytest.mark.parametrize("kind", ["control", "status"])
def test_no_socket_of_relay_is_in_the_directory_of_another_user(folder, tmp_path, kind):
    folder.chmod(0o755)
    os.chown(folder, OTHER, -1)
    file = tmp_path / "relay.toml"
    file.write_text('[tunnels.t]\nlisten = "127.0.0.1:0"\ntarget = "127.0.0.1:9"\n')
    file.chmod(0o600)
    control = folder if kind == "control" else tmp_path
    words = ["--status", f"unix://{folder}/s.sock"] if kind == "status" else []
    done = run("up", str(file), "--control", str(control / "c.sock"), *words)
    assert done.returncode == 2
    assert f"{folder} belongs to another user ({OTHER})" in done.stderr
    assert os.listdir(folder) == []
