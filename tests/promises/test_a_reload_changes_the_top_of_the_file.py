"""A reload opens control socket, status server and access log anew; what it does not change, it names."""

import json
import os
import socket

import httpx
import pytest
from command_rig import commands, run
from helpers import WAIT, receive_exactly, reserved_port, wait_until

TUNNEL = '[tunnels.one]\nlisten = ":0"\ntarget = "{}:{}"\n'


@pytest.fixture
def up(tmp_path, runtime_directory, echo_server):
    """Starts a relay up with these keys; its ``reload`` writes others."""
    file = tmp_path / "relay.toml"
    file.touch(0o600)

    def write(**keys):
        top = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        file.write_text(top + TUNNEL.format(*echo_server.address))

    with commands() as make:

        def start(*words, **keys):
            write(**keys)
            command = make(str(file), *words, command="up", env={**os.environ})
            line = command.process.stdout.readline()
            command.tunnel = ("127.0.0.1", int(line.partition("127.0.0.1:")[2].split()[0]))
            command.hear("1 of 1 tunnels listen")

            def reload(expected=0, words=("reload",), **keys):
                write(**keys)
                done = run("ctl", *words, env=command.environment)
                assert done.returncode == expected, done.stderr
                return done.stdout if expected == 0 else done.stderr

            command.reload = reload
            command.environment = {**os.environ}
            return command

        yield start


def talk(command):
    with socket.create_connection(command.tunnel, WAIT) as client:
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"


def get(port, path="/livez", **options):
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=WAIT, trust_env=False, **options).status_code


def test_status_control_and_access_log_are_opened_anew(up, tmp_path, runtime_directory):
    token, log, other = tmp_path / "token", tmp_path / "a.log", tmp_path / "b.log"
    token.touch(0o600)
    token.write_text("0123456789abcdef")
    with reserved_port() as first, reserved_port() as second, reserved_port() as third:
        keys = {"status": f"127.0.0.1:{first}", "log_file": "a.log"}
        command = up(**keys)
        assert get(first) == 200
        talk(command)
        wait_until(log.read_text)

        # Nothing has changed: the same sockets.
        assert command.reload(**keys) == "nothing has changed\n"
        assert get(first) == 200

        # One of them cannot be opened: nothing changes.
        with socket.create_server(("127.0.0.1", third)):
            said = command.reload(1, status=f"127.0.0.1:{third}", log_file="b.log")
            assert "Address already in use" in said
        assert get(first) == 200 and not other.exists()
        said = command.reload(1, status="127.0.0.1:nonsense")
        assert "nonsense" in said and get(first) == 200
        said = command.reload(1, **{**keys, "log_file": "nowhere/b.log"})
        assert "log file nowhere/b.log: No such file" in said

        # All of them change.
        control = runtime_directory / "other.sock"
        keys = {"status": f"127.0.0.1:{second}", "log_file": "b.log", "control": str(control)}
        assert command.reload(**keys) == "key log_file: tuned\nkey control: tuned\nkey status: tuned\n"
        assert get(second) == 200
        with pytest.raises(httpx.ConnectError):
            get(first)
        before = log.read_text()
        talk(command)
        wait_until(other.read_text)
        assert log.read_text() == before
        wait_until(lambda: not list(runtime_directory.glob("relay-*.sock")))

        # The new control socket is in use now, and answers.
        words = ("--control", str(control))
        instance = json.loads(run("ctl", "status", "--json", *words).stdout)
        assert (instance["control"], instance["reloads"]["succeeded"]) == (str(control), 2)
        assert instance["reloads"]["failed"] == 3

        # A token counts at once, also another one in the same file; and no server is left without an address.
        keys["status_token_file"] = "token"
        reload = ("reload", *words)
        assert command.reload(words=reload, **keys) == "key status_token_file: tuned\n"
        assert get(second) == 401
        assert get(second, headers={"Authorization": "Bearer 0123456789abcdef"}) == 200
        token.write_text("another-word-of-24-bytes")
        command.reload(words=reload, **keys)
        assert get(second, headers={"Authorization": "Bearer 0123456789abcdef"}) == 401
        assert get(second, headers={"Authorization": "Bearer another-word-of-24-bytes"}) == 200
        assert command.reload(words=reload, control=str(control)) == (
            "key log_file: tuned\nkey status: tuned\nkey status_token_file: tuned\n"
        )
        with pytest.raises(httpx.ConnectError):
            get(second)
        before = other.read_text()
        talk(command)
        assert command.end()[0] == 0
        assert other.read_text() == before
    assert not control.exists()


def test_an_option_counts_and_the_key_is_named_with_the_remedy(up, tmp_path):
    command = up("--log-file", str(tmp_path / "a.log"), "--status", "127.0.0.1:0")
    remedy = "key log_file: --log-file of the command line counts; restart relay without it"
    assert command.reload(log_file="b.log", words=("reload", "--dry-run")) == f"{remedy}\n"
    checked = run("check", "--diff", env=command.environment)
    assert checked.stdout == f"{remedy}\none: same\n"
    assert command.reload(log_file="b.log") == f"{remedy}\n"
    assert command.hear("restart relay").split()[1] == "WARNING"
    assert command.reload(log_file="b.log") == "nothing has changed\n"
    talk(command)
    wait_until((tmp_path / "a.log").read_text)
    assert command.end()[0] == 0
    assert not (tmp_path / "b.log").exists()


def test_a_status_port_that_was_in_use_is_tried_again(up):
    with reserved_port() as port:
        keys = {"status": f"127.0.0.1:{port}"}
        with socket.create_server(("127.0.0.1", port)):
            command = up(**keys)
            assert "relay continues without its status server" in command.said
            assert command.reload(**keys) == "nothing has changed\n"
        assert command.reload(**keys) == "nothing has changed\n"
        assert get(port) == 200
        assert command.end()[0] == 0
