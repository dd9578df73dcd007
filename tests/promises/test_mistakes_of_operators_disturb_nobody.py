"""Mistakes and hostile clients of operators: each gets an error, relay says so in one line, everything else goes on."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path

import httpx
import pytest
from command_rig import commands, run, tunnel
from helpers import WAIT, Thread, answer_to, receive_exactly, wait_until

LISTENING = re.compile(r"(\w+): listening on (\S+):(\d+) → ")
GARBAGE = {
    "garbage": b"\x16\x03\x01\x02\x00" + bytes(512),
    "10 MB": b"A" * 10_000_000,
    "long head": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"y" * 100_000,
    "10 MB of a body": b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n" + bytes(10_000_000),
}


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "relay.toml"
    made.touch(0o600)
    return made


@pytest.fixture
def silent():
    """A server that accepts and says nothing, until the test closes it; whether it has a client."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        clients, has_client = [], threading.Event()

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    clients.append(listening.accept()[0])
                    has_client.set()

        thread = threading.Thread(target=accept)
        thread.start()

        def close():
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT)
            for client in clients:
                client.close()
            listening.close()

        stack.callback(close)
        yield listening.getsockname()[1], has_client, close


@pytest.fixture
def up(file, environment):
    """Starts ``relay up`` with a text; returns the command and the addresses of its tunnels by name."""
    with commands() as make:

        def start(text, file=file):
            file.write_text(text)
            command = make(str(file), command="up", env=environment, stdin=subprocess.DEVNULL)
            where = {}
            for _ in range(text.count("[tunnels.")):
                name, host, port = LISTENING.match(command.process.stdout.readline()).groups()
                where[name] = host, int(port)
            return command, where

        yield start


@pytest.fixture
def ctl(environment):
    """Runs ``relay ctl WORDS…``; returns its output, or its errors if a status is expected."""

    def work(*words, status=0):
        done = run("ctl", *words, env=environment)
        assert done.returncode == status, (done.stdout, done.stderr)
        return done.stderr if status else done.stdout

    return work


def control_socket(environment):
    (path,) = Path(environment["RUNTIME_DIRECTORY"]).glob("*.sock")
    return str(path)


def connect(path):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(WAIT)
    client.connect(path)
    return client


def echoes(address):
    """Return whether a new connection of a tunnel to an echo server works."""
    with socket.create_connection(address, WAIT) as client:
        return repeats(client)


def repeats(client):
    client.sendall(b"ping")
    return receive_exactly(client, 4) == b"ping"


def place(server):
    return "{}:{}".format(*server.address)


def test_a_port_in_use_a_full_disk_and_a_probe_that_hangs_are_a_line_each(up, ctl, echo_server, silent):
    port, has_client, _ = silent
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status = f"127.0.0.1:{taken.getsockname()[1]}"
        top = f'status = "{status}"\nlog_file = "/dev/full"\n'
        mute = tunnel("mute", f"127.0.0.1:{port}", 'probe = "banner"', "probe_interval = 1", "required = true")
        command, where = up(top + tunnel("web", place(echo_server)) + mute)
        for _ in range(3):
            assert echoes(where["web"])
        assert has_client.wait(WAIT)

        def probe():
            tunnels = json.loads(ctl("list", "--json"))["tunnels"]
            return tunnels[1]["probe"]

        wait_until(lambda: probe()["problem"])
        first = probe()["finished"]
        wait_until(lambda: probe()["finished"] != first)
        assert probe()["problem"] == "no answer in time"
        assert ctl("reload") == "nothing has changed\n"
        assert echoes(where["web"])
        status_code, said = command.end()
    assert status_code == 0
    in_use = f"status address {status}: Address already in use; relay continues without its status server"
    assert said.count(in_use) == 2  # at the start, and as the reload tries again
    full = "access log /dev/full: cannot write: No space left on device; relay continues and tries again"
    assert said.count(full) == 1
    assert said.count("mute: probe: no answer in time") == 1
    assert "Traceback" not in said


def test_a_probe_that_hangs_delays_no_health_check_and_no_end(up, echo_server, silent):
    port, has_client, _ = silent
    mute = tunnel("mute", f"127.0.0.1:{port}", 'probe = "banner"', "required = true")
    command, _ = up('status = "127.0.0.1:0"\n' + tunnel("web", place(echo_server)) + mute)
    url = command.hear("status server at").partition("at ")[2].strip()
    assert has_client.wait(WAIT)
    answer = httpx.get(f"{url}/readyz", timeout=WAIT)
    assert (answer.status_code, answer.json()["problems"]) == (503, {"mute": "no probe has ended yet"})
    assert httpx.get(f"{url}/livez", timeout=WAIT).status_code == 200
    assert command.end()[0] == 0


def test_hostile_clients_of_the_control_socket_affect_nobody_else(up, ctl, echo_server, environment):
    command, where = up(tunnel("web", place(echo_server)))
    path = control_socket(environment)
    with contextlib.ExitStack() as stack:
        still = stack.enter_context(socket.create_connection(where["web"], WAIT))
        for _ in range(100):
            stack.enter_context(connect(path))  # and stays silent
        for name, data in GARBAGE.items():
            with connect(path) as client:
                answer = answer_to(client, data)
            assert not answer or answer.startswith(b"HTTP/1.1 4"), name
            assert ctl("reload") == "nothing has changed\n"
            assert repeats(still) and echoes(where["web"])
    status, said = command.end()
    assert status == 0
    assert "Traceback" not in said and "rror" not in said


def test_a_reload_during_a_reload_waits_and_nothing_else_does(up, ctl, echo_server, silent, file, environment):
    """The first one waits for an SSH server that is silent; many others come meanwhile."""
    port, has_client, close = silent
    web = tunnel("web", place(echo_server))
    command, where = up(web)
    file.write_text(web + tunnel("late", place(echo_server), listen=f"ssh://me@127.0.0.1:{port}"))
    first = Thread(ctl, "reload")
    assert has_client.wait(WAIT)
    file.write_text(web)
    second = Thread(ctl, "reload")
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            client = stack.enter_context(connect(control_socket(environment)))
            client.sendall(b"POST /reload HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(20):
            command.process.send_signal(signal.SIGHUP)
        assert "1 of 1 tunnels listen" in ctl("status")
        assert echoes(where["web"])
        assert first.is_alive() and second.is_alive()
        close()
        assert first.result() == "late: new\n"
        assert second.result() in ("late: gone\n", "nothing has changed\n")  # one of those before it has done it
    assert [each["name"] for each in json.loads(ctl("list", "--json"))["tunnels"]] == ["web"]
    assert echoes(where["web"])
    assert command.end()[0] == 0


def test_a_reload_that_waits_does_not_delay_the_end(up, echo_server, silent, file):
    port, has_client, _ = silent
    web = tunnel("web", place(echo_server))
    command, _ = up(web)
    file.write_text(web + tunnel("late", place(echo_server), listen=f"ssh://me@127.0.0.1:{port}"))
    command.process.send_signal(signal.SIGHUP)
    assert has_client.wait(WAIT)
    status, said = command.end()
    assert status == 0
    assert "Traceback" not in said


def test_a_second_relay_names_the_first_and_takes_over_the_socket_of_a_killed_one(up, file, environment, echo_server):
    command, where = up(tunnel("web", place(echo_server)))
    path = control_socket(environment)
    second = run("up", str(file), env=environment)
    named = f"relay runs already with {file}, process {command.process.pid}; relay ctl stop ends it"
    assert (second.returncode, second.stderr) == (1, f"relay: control socket {path}: {named}\n")
    assert echoes(where["web"])
    assert command.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert os.path.exists(path)
    command, where = up(tunnel("web", place(echo_server)))
    assert echoes(where["web"]) and control_socket(environment) == path
    assert command.end()[0] == 0


def test_a_command_for_a_relay_that_hangs_reaches_no_other_one(up, ctl, echo_server, file):
    hung, _ = up(tunnel("web", place(echo_server)))
    other, where = up(tunnel("web", place(echo_server)), file.with_name("other.toml"))
    hung.process.send_signal(signal.SIGSTOP)
    try:
        for words in (["stop"], ["pause", "web"]):
            said = ctl(*words, status=2)
            assert said.startswith("relay: 2 relays are running; choose one: --control ")
            assert "(no answer)" in said and "other.toml)" in said
        assert echoes(where["web"])
    finally:
        hung.process.send_signal(signal.SIGCONT)
    assert (hung.end()[0], other.end()[0]) == (0, 0)


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (["--control", "/tmp/" + "x" * 120], 2, "at most 107"),
        (["--control", "/nowhere/x/relay.sock"], 1, "/nowhere/x: No such file or directory"),
        (["--control", "{folder}/open/relay.sock"], 2, "others can write to {folder}/open (mode 0777); chmod go-w it"),
        (["--control", "{folder}"], 1, "that is a directory; name a file in it"),
        (["--status", "0.0.0.0:0"], 2, "other machines can reach it; use 127.0.0.1, or set status_public = true"),
    ],
)
def test_an_address_for_operators_that_cannot_be_is_one_line(file, environment, tmp_path, words, status, line):
    file.write_text(tunnel("web", "127.0.0.1:1"))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    done = run("up", str(file), *(word.format(folder=tmp_path) for word in words), env=environment)
    assert (done.returncode, done.stdout) == (status, "")
    assert line.format(folder=tmp_path) in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("mode", "more", "line"),
    [
        (0o644, "", "others can read it (mode 0644); chmod 600 it"),
        (0o600, 'status_token_file = "none"', "none: No such file or directory; make one, owner-only"),
    ],
)
def test_a_token_that_is_no_secret_is_rejected(file, environment, tmp_path, mode, more, line):
    (token := tmp_path / "token").write_text("0123456789abcdef0123\n")
    token.chmod(mode)
    more = more or f'status_token_file = "{token}"'
    file.write_text(f'status = "0.0.0.0:0"\nstatus_public = true\n{more}\n' + tunnel("web", "127.0.0.1:1"))
    done = run("up", str(file), env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr and done.stderr.count("\n") == 1
