"""Without a free descriptor, signals and operators are served: nothing that they need is imported or opened only then.

From the moment when a test says so, no process of the command can import a module, and none has a descriptor left but a
few below its hard limit, which are those in reserve for operators.
"""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys

import pytest
from command_rig import run
from helpers import WAIT, ending, family, receive_exactly, wait_until

import relay.daemon.client
import relay.testing

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets the limits of another process")

# What the interpreter of each process runs first. The audit hook sees each import of a module that is not loaded yet.
SITE = """
import os, sys
def refuse(event, arguments, mark={mark!r}):
    if event == "import" and os.access(mark, os.F_OK):
        raise ImportError("import of %s without a descriptor" % arguments[0])
sys.addaudithook(refuse)
"""
RESERVE = 8
FEW = ("sh", "-c", 'ulimit -n 64; exec "$0" "$@"')


class Site:
    """The environment of a command whose imports can be blocked."""

    def __init__(self, folder):
        self.mark = folder / "mark"
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SITE.format(mark=str(self.mark)))
        self.environment = {**os.environ, "PYTHONPATH": str(folder / "site")}

    def use_up(self, command):
        """Leave the command no import and no descriptor, once it has begun to wait for signals."""
        command.process.send_signal(signal.SIGUSR1)
        command.hear("SIGUSR1: ")
        self.mark.touch()
        for process in family(command.process.pid):
            used = {int(name) for name in os.listdir(f"/proc/{process}/fd")}
            free = sorted({*range(max(used) + RESERVE + 2)} - used)
            resource.prlimit(process, resource.RLIMIT_NOFILE, (free[0], free[RESERVE]))


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def connected(port, *, target=None):
    """Return a client that the target has answered."""
    client = socket.create_connection(("127.0.0.1", port), WAIT)
    if target is not None:
        client.sendall(b"\5\1\0\5\1\0\1\x7f\0\0\1" + target[1].to_bytes(2))
        assert receive_exactly(client, 12)[3] == 0
    exchange(client)
    return client


def exchange(client, text=b"ping"):
    client.sendall(text)
    assert receive_exactly(client, len(text)) == text


FORWARD = ("forward", ":0", "{target}")
SOCKS = ("socks", ":0")
EXPOSE = ("expose", "{target}", "--on", "{server}")


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (FORWARD, signal.SIGTERM),
        (FORWARD, signal.SIGINT),
        (FORWARD, signal.SIGHUP),
        ((*FORWARD, "--drain-spread", "1"), signal.SIGTERM),
        ((*FORWARD, "--shutdown-delay", "0.1"), signal.SIGTERM),
        ((*FORWARD, "--workers", "2"), signal.SIGTERM),
        ((*FORWARD, "--via", "{server}"), signal.SIGTERM),
        (SOCKS, signal.SIGTERM),
        (EXPOSE, signal.SIGTERM),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else " ".join(value),
)
def test_a_signal_drains(words, number, site, start, echo_server, ssh_server, tmp_path):
    target = "{}:{}".format(*echo_server.address)
    command, *arguments = (word.format(target=target, server=ssh_server.url) for word in words)
    log = tmp_path / "access.log"
    arguments += ["--drain", str(WAIT), "--log-file", str(log)]
    process = start(*arguments, command=command, env=site.environment)
    port = int(re.search(r":(\d+) ", process.process.stdout.readline())[1])
    with connected(port, target=echo_server.address if words == SOCKS else None) as client:
        site.use_up(process)
        process.process.send_signal(number)
        process.hear("closing; 1 open, 60 s to finish")
        exchange(client, b"more")
        client.shutdown(socket.SHUT_WR)
        assert ending(client) == "end of file"
    status, said = process.wait()
    assert (status, "WARNING" in said, "ERROR" in said) == (0, False, False), said
    assert [json.loads(line)["in"] for line in log.read_text().splitlines()] == [8]


def test_a_signal_ends_a_destination_of_i2p(site, start):
    with relay.testing.SAMBridge() as bridge:
        place = "i2p:?sam={}:{}".format(*bridge.address)
        process = start("127.0.0.1:9", "--on", place, "--transient", command="expose", env=site.environment)
        assert process.process.stdout.readline().endswith(" → 127.0.0.1:9\n")
        site.use_up(process)
        assert process.end() == (0, process.said)
    assert "SIGTERM: closing" in process.said and "ERROR" not in process.said


@pytest.mark.parametrize("workers", [1, 2])
def test_operators_reload_reopen_look_and_stop(workers, site, start, echo_server, runtime_directory, tmp_path):
    file, log, path = tmp_path / "relay.toml", tmp_path / "access.log", str(runtime_directory / "c.sock")
    file.touch(0o600)
    text = '[tunnels.one]\nlisten = "127.0.0.1:0"\ntarget = "{}:{}"\ndrain = 60\n'.format(*echo_server.address)
    file.write_text(text)
    words = ("--control", path, "--log-file", str(log), "--workers", str(workers), "--debug")
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(runtime_directory)}
    process = start(
        str(file), *words, command="up", env=site.environment, stdin=subprocess.DEVNULL
    )  # without a terminal, SIGHUP reloads
    # The server of operators runs before anyone has asked for it.
    process.hear("operators are served from now on")
    port = int(re.search(r":(\d+) ", process.process.stdout.readline())[1])
    with connected(port) as client:
        site.use_up(process)

        def ctl(*arguments):
            done = run("ctl", *arguments, "--control", path, env=environment)
            assert done.returncode == 0, done.stderr
            return done.stdout

        (tunnel,) = json.loads(ctl("list", "--json"))["tunnels"]
        assert (tunnel["name"], tunnel["state"]) == ("one", "listening")
        file.write_text(text + "nconnect = 7\n")
        process.process.send_signal(signal.SIGHUP)
        process.hear("reload: 1 of 1 tunnels changed")
        file.write_text(text + "nconnect = 8\n")
        assert "one: tuned" in ctl("reload")
        for words in ("status", "carriers", "bans", "quotas", "ready", "live"):
            ctl(words)
        assert str(client.getsockname()[1]) in ctl("connections")
        os.rename(log, tmp_path / "old.log")
        process.process.send_signal(signal.SIGUSR1)
        process.hear("SIGUSR1: the log file is open again")
        assert log.exists()
        os.rename(log, tmp_path / "older.log")
        ctl("reopen")
        assert log.exists()
        ctl("stop")
        process.hear("SIGTERM: closing; 1 open")
        exchange(client)
    status, said = process.wait()
    assert (status, "ERROR" in said, "WARNING" in said) == (0, False, False), said
    assert len(log.read_text().splitlines()) == 1


def test_clients_that_use_up_all_descriptors_are_drained(site, start, echo_server):
    process = start(":0", "{}:{}".format(*echo_server.address), "--drain", str(WAIT), env=site.environment, prefix=FEW)
    _, port = process.address()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), WAIT)) for _ in range(60)]
        process.hear("cannot accept for now: Too many open files")
        for client in clients:
            client.sendall(b"ping")
        served = [client for client in clients[:10] if receive_exactly(client, 4) == b"ping"]
        process.process.send_signal(signal.SIGTERM)
        process.hear("SIGTERM: closing; ")
        for client in served:
            exchange(client)
        assert len(served) == 10
    status, said = process.wait()
    assert (status, "ERROR" in said) == (0, False), said
    assert ".py" not in said


def test_clients_that_use_up_all_descriptors_leave_some_for_operators(
    site, start, echo_server, runtime_directory, tmp_path
):
    """Many more clients wait in the backlog; whatever an operator frees, they must not get it."""
    path = str(runtime_directory / "c.sock")
    file = tmp_path / "relay.toml"
    file.touch(0o600)
    text = '[tunnels.one]\nlisten = "127.0.0.1:0"\ntarget = "{}:{}"\n'.format(*echo_server.address)
    file.write_text(text)
    process = start(str(file), "--control", path, command="up", env=site.environment, prefix=FEW)
    port = int(re.search(r":(\d+) ", process.process.stdout.readline())[1])
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), WAIT)).sendall(b"ping")
        process.hear("cannot accept for now: Too many open files")
        for number in range(1, 6):
            file.write_text(f"{text}timeout = {number}00\n")
            assert "one: tuned" in run("ctl", "reload", "--control", path).stdout
        before = len(run("ctl", "connections", "--control", path).stdout.splitlines())
        file.write_text(f"{text}nconnect = 2\n")  # the remedy
        assert "one: tuned" in run("ctl", "reload", "--control", path).stdout
        assert before > 10
        operator = relay.daemon.client.Client(path, WAIT)
        assert "/metrics" in operator.get("/openapi.json")["paths"]
        with pytest.raises(relay.daemon.client.ClientError, match="is not JSON"):  # what few ask for is imported now
            operator.get("/metrics")
        operator.close()
    wait_until(lambda: len(run("ctl", "connections", "--control", path).stdout.splitlines()) <= 3)
    assert process.end()[0] == 0
