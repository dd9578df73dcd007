"""A tunnel with several targets: a client whose target fails gets the next one, and a target returns by itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from command_rig import commands, run
from helpers import WAIT, black_hole, fate_of_client, receive_exactly, reserved_port, stop, wait_until

import relay

# A server that can be killed: it sends its letter, then repeats what it gets. Its first line says that it listens.
SERVER = """
import socket, sys, threading
letter, port = sys.argv[1].encode(), int(sys.argv[2])
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind(("127.0.0.1", port))
listening.listen(512)
print("ready", flush=True)
def serve(client):
    with client:
        try:
            client.sendall(letter)
            while data := client.recv(65536):
                client.sendall(data)
        except OSError:
            pass
while True:
    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
"""


class Target:
    """A server in a process, which may be killed and started again at its port."""

    def __init__(self, letter, port):
        self.letter, self.port = letter, port
        self.place = f"127.0.0.1:{port}"
        self.process = None

    def start(self):
        command = [sys.executable, "-S", "-c", SERVER, self.letter, str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait(WAIT)
            self.process.stdout.close()
            self.process = None


@pytest.fixture
def targets():
    with reserved_port() as one, reserved_port() as other:
        made = [Target("a", one), Target("b", other)]
        try:
            for target in made:
                target.start()
            yield made
        finally:
            for target in made:
                target.kill()


@pytest.fixture
def start(runtime_directory):
    with commands() as start:
        yield lambda *words, command="up": start(*words, command=command, env={**os.environ})


def ctl(*words, status=0):
    done = run("ctl", *words, env={**os.environ})
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def letter_of(address):
    """The letter of the server that a new client gets."""
    with socket.create_connection(address, WAIT) as client:
        return receive_exactly(client, 1).decode()


def listening(command):
    """The address where the only tunnel of a command listens, from its first line."""
    line = command.process.stdout.readline()
    host, port = re.search(r"listening on (\S+):(\d+) → ", line).groups()
    return host, int(port)


def up(start, tmp_path, targets, *lines):
    """A ``relay up`` with these targets; the address where it listens."""
    path = tmp_path / "relay.toml"
    places = ", ".join(f'"{target.place}"' for target in targets)
    path.write_text("\n".join(['[tunnels.db]\nlisten = ":0"', f"target = [{places}]", *lines, ""]))
    command = start(str(path))
    return command, listening(command)


def states():
    (tunnel,) = json.loads(ctl("list", "--json"))["tunnels"]
    return {one["target"]: one["state"] for one in tunnel["targets"]}


def test_clients_never_notice_a_target_that_is_killed(start, tmp_path, targets, record_property):
    first, second = targets
    command, address = up(start, tmp_path, targets)
    assert letter_of(address) == "a"
    stays = socket.create_connection(address, WAIT)
    assert receive_exactly(stays, 1) == b"a"
    first.kill()
    assert stays.recv(1) == b""  # or a reset: its own connection has ended
    stays.close()
    letters: list[str] = []
    stop = threading.Event()

    def clients():
        while not stop.is_set():
            letters.append(letter_of(address))

    load = threading.Thread(target=clients)
    load.start()
    try:
        wait_until(lambda: len(letters) > 20)
        assert set(letters) == {"b"}
        line = command.hear("is down")
        assert f"db: target {first.place} is down: {first.place}: connection refused" in line
        first.start()
        mended = time.monotonic()
        wait_until(lambda: "a" in letters)  # after a probe
        back = time.monotonic() - mended
        record_property("measured", f"target killed: the other one for the next client, back after {back:.2f} s")
    finally:
        stop.set()
        load.join()
    assert set(letters) == {"a", "b"}
    assert f"db: target {first.place} is up again" in command.hear("up again")
    status, _ = command.end()
    assert status == 0
    assert second.process.poll() is None


@contextlib.contextmanager
def stopped(target):
    """It hangs: the system accepts connections for it, but it answers none."""
    stop(target.process.pid)
    yield
    os.kill(target.process.pid, signal.SIGCONT)


@contextlib.contextmanager
def cut_off(target):
    """Nothing comes from it any more, not even a refusal, as behind a firewall that drops packets."""
    target.kill()
    with black_hole(target.port):
        yield
    target.start()


@pytest.mark.parametrize(("fault", "probe"), [(stopped, "banner"), (cut_off, "connect")], ids=["stopped", "cut off"])
def test_a_probe_finds_a_target_that_hangs_before_clients_wait_for_it(
    start, tmp_path, targets, record_property, fault, probe
):
    """The tunnel stays ready: other machines with the same targets would not be ready either."""
    command, address = up(start, tmp_path, targets, f'probe = "{probe}"', "probe_interval = 1", "required = true")

    def new_letter():
        try:
            return letter_of(address)
        except OSError:  # a busy machine may answer no probe in a second
            return None

    def is_ready():
        return run("ctl", "ready", env={**os.environ}).returncode == 0

    wait_until(is_ready)
    assert new_letter() == "a"
    begun = time.monotonic()
    with fault(targets[0]):
        command.hear(f"{targets[0].place} is down: ")
        wait_until(lambda: new_letter() == "b")
        replaced = time.monotonic() - begun
        wait_until(is_ready)
        mended = time.monotonic()
    command.hear(f"{targets[0].place} is up again")
    wait_until(lambda: new_letter() == "a")
    back = time.monotonic() - mended
    what = fault.__name__.replace("_", " ")
    record_property("measured", f"target {what}: the other one after {replaced:.2f} s, back after {back:.2f} s")


def test_operators_see_and_set_the_state_of_each_target(start, tmp_path, targets):
    first, second = targets
    _, address = up(start, tmp_path, targets)
    assert letter_of(address) == "a"
    assert states() == {first.place: "up", second.place: "up"}
    open_one = socket.create_connection(address, WAIT)
    assert receive_exactly(open_one, 1) == b"a"
    ctl("disable", "db", first.place)
    assert states() == {first.place: "disabled", second.place: "up"}
    assert letter_of(address) == "b"
    with open_one:
        open_one.sendall(b"still")
        assert receive_exactly(open_one, 5) == b"still"
    assert f"db: target {first.place}, disabled for" in ctl("list")
    ctl("disable", "db", second.place)
    assert fate_of_client(address) == "reset"
    ctl("enable", "db", first.place)
    wait_until(lambda: states()[first.place] == "up")
    assert letter_of(address) == "a"
    assert "db: there is no target nowhere:1; known are" in ctl("disable", "db", "nowhere:1", status=2)


def test_a_reload_changes_the_targets_and_keeps_connections(start, tmp_path, targets):
    first, second = targets
    command, address = up(start, tmp_path, targets)
    path = tmp_path / "relay.toml"
    with socket.create_connection(address, WAIT) as client:
        assert receive_exactly(client, 1) == b"a"
        path.write_text(f'[tunnels.db]\nlisten = ":0"\ntarget = "{second.place}"\n')
        assert "db: rerouted (target)" in ctl("reload")
        assert letter_of(address) == "b"
        client.sendall(b"still")
        assert receive_exactly(client, 5) == b"still"
    path.write_text(f'[tunnels.db]\nlisten = ":0"\ntarget = ["{second.place}", "{first.place}"]\npolicy = "spread"\n')
    assert "db: rerouted (target, policy)" in ctl("reload")
    with socket.create_connection(address, WAIT) as client:
        assert receive_exactly(client, 1) == b"b"
        assert letter_of(address) == "a"
    ctl("disable", "db", second.place)
    first.kill()
    assert fate_of_client(address) == "reset"
    path.write_text(f'[tunnels.db]\nlisten = ":0"\ntarget = ["{second.place}", "{first.place}", "127.0.0.1:1"]\n')
    assert "db: rerouted (target, policy)" in ctl("reload")
    known = states()
    assert known.pop(first.place) in ("down", "probing")
    assert known == {second.place: "disabled", "127.0.0.1:1": "up"}
    assert command.end(signal.SIGTERM)[0] == 0


def test_a_reload_of_the_targets_keeps_the_tunnel_ready(start, tmp_path, targets):
    """By the last probe of those before, until one of the new ones has ended: here both hang, and have a minute."""
    lines = ['probe = "banner"', "probe_interval = 60", "required = true"]
    up(start, tmp_path, targets, *lines)
    wait_until(lambda: run("ctl", "ready", env={**os.environ}).returncode == 0)
    with stopped(targets[0]), stopped(targets[1]):
        path = tmp_path / "relay.toml"
        path.write_text(path.read_text().replace("target = [", 'target = ["127.0.0.1:1", '))
        assert "db: rerouted (target)" in ctl("reload")
        done = run("ctl", "ready", env={**os.environ})
        assert done.returncode == 0, done.stderr


def test_metrics_show_each_target(start, tmp_path, targets):
    first, second = targets
    path = tmp_path / "relay.toml"
    command, address = up(start, tmp_path, targets)
    path.write_text('status = "127.0.0.1:0"\n' + path.read_text())
    ctl("reload")
    url = command.hear("status server at").partition("at ")[2].strip()
    first.kill()
    assert letter_of(address) == "b"
    page = httpx.get(f"{url}/metrics", timeout=WAIT).text
    assert f'relay_target_up{{tunnel="db",target="{first.place}"}} 0' in page
    assert f'relay_target_up{{tunnel="db",target="{second.place}"}} 1' in page


def test_the_command_line_and_python_have_several_targets_too(start, targets):
    first, second = targets
    first.kill()
    command = start(":0", first.place, "--target", second.place, command="forward")
    assert letter_of(listening(command)) == "b"
    factory = relay.target([first.place, second.place], policy="spread")
    with relay.Tunnel(socket.create_server(("127.0.0.1", 0)), factory) as tunnel:
        assert letter_of(tunnel.address) == "b"
        assert letter_of(tunnel.address) == "b"


def test_several_ways_lead_to_one_target(targets, make_sshd, tmp_path):
    """The way of a bastion that is killed is replaced by that of another one."""
    first, _ = targets
    one, other = make_sshd(), make_sshd()
    ways = [[server.url] for server in (one, other)]
    with relay.target(first.place, ways) as factory:
        with relay.Tunnel(socket.create_server(("127.0.0.1", 0)), factory, timeout=None) as tunnel:
            assert letter_of(tunnel.address) == "a"
            wait_until(lambda: len(tunnel.recent()) == 1)
            assert str(one.port) in tunnel.recent()[0].carrier
            one.kill()
            assert letter_of(tunnel.address) == "a"
            wait_until(lambda: len(tunnel.recent()) == 2)
            assert str(other.port) in tunnel.recent()[-1].carrier
            assert {label for label, _ in tunnel.recent()[-1].hop_times} <= {"1:ssh", "2:target"}
