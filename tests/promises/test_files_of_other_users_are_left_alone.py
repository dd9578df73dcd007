"""``log_file`` and ``state`` in a directory of another user: no file that this user links there is changed."""

import json
import os
import socket
import stat

import pytest
from command_rig import commands, run
from helpers import WAIT, receive_exactly, wait_until

OTHER = 4242  # a user who is neither root nor the one who runs the tests
PROFILE = "# a file that another program reads\n"
TUNNEL = '[tunnels.one]\nlisten = "127.0.0.1:0"\ntarget = "{}:{}"\n'

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")


@pytest.fixture
def victim(tmp_path):
    """A file of root's that every user may read."""
    path = tmp_path / "profile"
    path.write_text(PROFILE)
    path.chmod(0o644)
    yield path
    assert path.read_text() == PROFILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.fixture
def folder(tmp_path):
    """A directory of another user."""
    made = tmp_path / "another's"
    made.mkdir()
    os.chown(made, OTHER, -1)
    return made


@pytest.fixture
def up(tmp_path, runtime_directory, echo_server):
    """Starts a relay up with such keys."""
    file = tmp_path / "relay.toml"
    file.touch(0o600)
    with commands() as make:

        def start(*words, **keys):
            top = "".join(f"{key} = {json.dumps(str(value))}\n" for key, value in keys.items())
            file.write_text(top + TUNNEL.format(*echo_server.address))
            return make(str(file), *words, command="up", env={**os.environ})

        yield start


def plant(link, target):
    """Put a link there, as its owner."""
    link.symlink_to(target)
    os.chown(link, OTHER, -1, follow_symlinks=False)


def talk(command):
    """Make a connection of which there is a line when it ends."""
    line = command.process.stdout.readline()
    address = ("127.0.0.1", int(line.partition("127.0.0.1:")[2].split()[0]))
    with socket.create_connection(address, WAIT) as client:
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"


@only_root
def test_a_log_file_that_is_a_link_is_not_written(up, victim, folder):
    plant(folder / "log", victim)
    command = up(log_file=folder / "log")
    assert command.wait()[0] == 2
    assert f"log file {folder}/log: a link of another user (ID {OTHER}) lies there; check the path" in command.said


@only_root
def test_a_log_file_that_becomes_a_link_is_not_opened_again(up, victim, folder):
    log = folder / "log"
    command = up(log_file=log)
    talk(command)
    wait_until(log.read_text)
    log.rename(folder / "old")
    plant(log, victim)
    done = run("ctl", "reopen", env={**os.environ})
    assert done.returncode == 1 and "a link of another user" in done.stderr
    assert command.end()[0] == 0
    assert json.loads((folder / "old").read_text().splitlines()[0])["tunnel"] == "one"


@only_root
def test_a_state_file_that_is_a_link_is_not_touched(up, victim, tmp_path):
    """As in /tmp, where no other user can replace what lies there."""
    plant(tmp_path / "state", victim)
    command = up(state=tmp_path / "state")
    command.hear(f"WARNING state file {tmp_path}/state: a link of another user (ID {OTHER}) lies there; ")
    talk(command)
    assert command.end()[0] == 0


@only_root
@pytest.mark.parametrize("is_linked", [False, True])
def test_no_state_is_kept_in_a_directory_of_another_user(up, tmp_path, folder, is_linked):
    path = folder / "state"
    if is_linked:
        path = tmp_path / "state"
        path.symlink_to(folder / "state")
    command = up(state=path)
    command.hear(f"WARNING state file {path}: {folder} belongs to another user ({OTHER}); ")
    talk(command)
    assert command.end()[0] == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["profile", "link"])
def test_the_mode_of_a_file_that_is_no_state_of_relay_stays(up, victim, tmp_path, name):
    """The path may be wrong."""
    (tmp_path / "link").symlink_to(victim)
    command = up(state=tmp_path / name)
    assert "it is damaged, or no database" in command.hear("WARNING state file ")
    talk(command)
    assert command.end()[0] == 0


@only_root
@pytest.mark.parametrize("key", ["log_file", "state"])
def test_a_file_of_another_user_is_not_used(up, tmp_path, key):
    path = tmp_path / "planted"
    path.touch()
    path.chmod(0o666)
    os.chown(path, OTHER, -1)
    command = up(**{key: path})
    command.hear(f"{path}: it belongs to another user (ID {OTHER}); check the path and its permissions")
    assert path.read_bytes() == b""
    assert stat.S_IMODE(path.stat().st_mode) == 0o666


@pytest.mark.parametrize("path", ["/dev/stdout", "/proc/self/fd/1", "link"])
def test_a_log_on_standard_output(up, tmp_path, path):
    (tmp_path / "link").symlink_to("/dev/stdout")
    command = up(log_file=tmp_path / path)
    talk(command)
    assert json.loads(command.process.stdout.readline())["tunnel"] == "one"
