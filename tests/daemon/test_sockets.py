"""``relay.daemon.sockets`` and ``runtime``: where operators connect, and who may."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from helpers import WAIT
from instance_double import Double, served

from relay.daemon import runtime
from relay.daemon.sockets import InUseError, open_control, open_status, read_token

TOKEN = "0123456789abcdef"


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(f"{TOKEN}\n")
    return file


# -- the control socket -----------------------------------------------------------------------------------------------


def test_it_is_owner_only_and_so_is_the_directory_that_is_made(tmp_path):
    endpoint = open_control(str(tmp_path / "relay" / "x.sock"))
    try:
        assert stat.S_IMODE(os.stat(endpoint.path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(tmp_path / "relay").st_mode) == 0o700
        assert endpoint.is_control
    finally:
        endpoint.close()
    assert not os.path.exists(endpoint.path)


def test_a_directory_in_which_others_may_write_is_rejected(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ValueError, match=r"others can write to .*shared \(mode 0777\); chmod go-w it"):
        open_control(str(shared / "x.sock"))
    shared.chmod(0o1777)
    open_control(str(shared / "x.sock")).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_directory_of_another_user_is_rejected(tmp_path, mode):
    folder = tmp_path / "theirs"
    folder.mkdir()
    folder.chmod(mode)
    os.chown(folder, 4711, -1)
    problem = f"^{folder} belongs to another user \\(4711\\); choose a directory of yours or root's$"
    with pytest.raises(ValueError, match=problem):
        open_control(str(folder / "x.sock"))
    with pytest.raises(ValueError, match=problem):
        open_status(f"unix://{folder}/x.sock")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("path", ["", "unix:///run/c.sock"])
def test_a_path_that_cannot_be_that_of_a_socket_is_rejected_before_anything_is_made(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="^control socket.*; (name|write)"):
        open_control(path)
    assert os.listdir() == []


def test_the_socket_of_a_killed_process_is_replaced(tmp_path):
    path = str(tmp_path / "x.sock")
    code = "import sys, signal\nfrom relay.daemon.sockets import open_control\n"
    code += "made = open_control(sys.argv[1])\nprint('open', flush=True)\nsignal.pause()"
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"open\n"
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT)
    assert os.path.exists(path)
    open_control(path).close()


def test_a_relay_that_runs_is_named(tmp_path):
    with served(Double(), tmp_path) as app:
        with pytest.raises(InUseError) as caught:
            open_control(app.control.path)
        assert caught.value.strerror == (
            f"control socket {app.control.path}: relay runs already with /etc/relay.toml, process 4711; "
            "relay ctl stop ends it"
        )
        assert app.get("/tunnels").status_code == 200


def test_another_program_is_not_disturbed(tmp_path):
    path = str(tmp_path / "x.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        other.settimeout(WAIT)

        def answer():
            for _ in range(2):
                client, _ = other.accept()
                with client, contextlib.suppress(OSError):  # the first one only looks whether there is a listener
                    client.sendall(b"220 no HTTP here\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(InUseError, match=f"another program .process {os.getpid()}. listens there; stop it"):
            open_control(path)
        thread.join(WAIT)
    assert os.path.exists(path)


# -- the status addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:0", ":0", "localhost:0", "0", "[::1]:0"])
def test_a_loopback_address_needs_no_permission(address):
    endpoint = open_status(address)
    try:
        assert not endpoint.is_control
        assert not endpoint.is_public
        assert endpoint.socket.getsockname()[0] in ("127.0.0.1", "::1")
    finally:
        endpoint.close()


def test_a_unix_socket_is_owner_only(tmp_path):
    endpoint = open_status(f"unix://{tmp_path}/s.sock")
    try:
        assert stat.S_IMODE(os.stat(endpoint.path).st_mode) == 0o600
        assert not endpoint.is_control
    finally:
        endpoint.close()


def test_a_unix_socket_may_be_for_programs_of_other_users(tmp_path):
    endpoint = open_status(f"unix://{tmp_path}/s.sock?mode=0660&group={os.getegid()}")
    try:
        assert stat.S_IMODE(os.stat(endpoint.path).st_mode) == 0o660
    finally:
        endpoint.close()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
def test_a_public_address_needs_permission_and_a_token(address, token_file):
    with pytest.raises(ValueError, match="other machines can reach it"):
        open_status(address)
    with pytest.raises(ValueError, match="needs a token; set status_token_file"):
        open_status(address, is_public=True)


def test_with_both_it_is_opened(token_file):
    endpoint = open_status("0.0.0.0:0", is_public=True, token_file=str(token_file))
    try:
        assert endpoint.is_public
        assert endpoint.token == TOKEN
    finally:
        endpoint.close()


@pytest.mark.parametrize("address", ["ssh://host", "tls://:1", "db.internal:80", "x:y:z", "unix://"])
def test_another_address_is_rejected(address):
    with pytest.raises(ValueError, match="address"):
        open_status(address)


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"status address 127.0.0.1:{port}: Address already in use"):
            open_status(f"127.0.0.1:{port}")


@pytest.mark.parametrize("text", ["", "short", "two words are not one token", "\u2028" * 20, "x" * 5000])
def test_a_token_is_one_word_of_some_length(token_file, text):
    token_file.write_text(text)
    with pytest.raises(ValueError, match="one word of 16 or more ASCII characters"):
        read_token(str(token_file))


def test_a_token_that_others_can_read_is_rejected(token_file, tmp_path):
    token_file.chmod(0o640)
    with pytest.raises(ValueError, match=r"others can read it \(mode 0640\); chmod 600 it"):
        read_token(str(token_file))
    with pytest.raises(ValueError, match="No such file"):
        read_token(str(tmp_path / "none"))


# -- the directories --------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(monkeypatch):
    """A directory with a short path, as that of a user is."""
    with tempfile.TemporaryDirectory(prefix="run-") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
        yield Path(path)


def test_two_files_of_the_same_name_have_different_sockets(directory):
    first, second = (runtime.default_path(f"/{folder}/relay.toml") for folder in "ab")
    assert first != second
    assert Path(first).parent == directory / "relay"
    assert Path(first).name.startswith("relay-")


def test_a_name_that_is_hostile_becomes_harmless(directory):
    path = runtime.default_path("/x/" + "\n\x1b[31m" + "ä" * 80 + ".toml")
    assert Path(path).name.isascii()
    assert len(Path(path).name) < 50


def test_a_directory_of_a_systemd_unit_is_the_only_one(directory, monkeypatch):
    assert runtime.runtime_directories() == [str(directory / "relay"), "/run/relay"]
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/unit:/run/other")
    assert runtime.runtime_directories() == ["/run/unit"]


def test_a_directory_of_another_user_is_not_used(directory, monkeypatch):
    monkeypatch.setattr(runtime.os, "geteuid", lambda: 12345)
    assert runtime.runtime_directories() == ["/run/relay"]
    assert runtime.default_path("/a/relay.toml") is None, "only root makes one there"


def test_a_path_that_is_too_long_for_a_socket_is_none(directory, monkeypatch):
    long = directory / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert runtime.default_path("/a/relay.toml") is None


def test_only_sockets_are_listed(directory, monkeypatch):
    monkeypatch.setattr(runtime, "runtime_directories", lambda: [str(directory), str(directory / "none")])
    (directory / "file.sock").touch()
    endpoint = open_control(str(directory / "b.sock"))
    try:
        assert list(runtime.control_sockets()) == [endpoint.path]
    finally:
        endpoint.close()
