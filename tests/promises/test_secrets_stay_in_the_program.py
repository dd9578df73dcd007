"""A variable that an address names as the place of a secret reaches no program that is started, and still its use."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from command_rig import commands, run
from helpers import WAIT, Server, family, receive_all
from sshd import embedded, server_url

import relay

WORD = "correct-horse-battery"


@pytest.fixture
def variable(monkeypatch):
    monkeypatch.setenv("RELAY_TEST_WORD", WORD)
    monkeypatch.setenv("RELAY_TEST_OTHER", "inherited")
    return "RELAY_TEST_WORD"


@pytest.fixture
def protected(make_ssh_server, variable, backend):
    """The address of a server that takes a password."""
    rig = make_ssh_server(users={"ann": WORD})
    return server_url(embedded(rig, keyfile=None, backend=backend), password_env=variable)


def environments(pids):
    return b"\0".join(content(Path(f"/proc/{pid}/environ")) for pid in pids)


def content(path):
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def read(address):
    with socket.create_connection(address, WAIT) as client:
        client.settimeout(WAIT)
        return receive_all(client)


def name(variable):
    """Nothing more than an address need name it, and anywhere in the program."""
    relay.ssh(f"ssh://ann@nowhere.example?passphrase_env={variable}", "127.0.0.1", 1).close()


def test_a_program_as_a_target(variable, spawner_thread):
    name(variable)
    with relay.connect("exec:env") as stream:
        stream.settimeout(WAIT)
        said = receive_all(stream)
    assert b"RELAY_TEST_OTHER=inherited" in said
    assert WORD.encode() not in said


def test_a_program_in_a_spawned_relay(variable, spawner_thread):
    name(variable)
    with relay.spawn(":0", "exec:env") as tunnel:
        said = read(tunnel.address)
    assert b"RELAY_TEST_OTHER=inherited" in said
    assert WORD.encode() not in said


@pytest.mark.parametrize("workers", [None, 2])
def test_a_program_in_a_relay_that_was_spawned_before_the_variable_is_named(monkeypatch, spawner_thread, workers):
    variable = f"RELAY_TEST_LATE_{workers}"  # no other test has named it in this process
    monkeypatch.setenv(variable, WORD)
    with relay.spawn(":0", "exec:env", workers=workers) as tunnel:
        assert WORD.encode() in read(tunnel.address)
        name(variable)
        tunnel.connections()  # each worker answers in the order in which it is asked
        for _ in range(4):
            said = read(tunnel.address)
            assert b"PATH=" in said and WORD.encode() not in said


@pytest.mark.parametrize("key", ["via", "listen"])
def test_a_program_in_workers_that_run_before_a_reload_names_the_variable(variable, runtime_directory, tmp_path, key):
    first = 'workers = 2\n[tunnels.one]\nlisten = ":0"\ntarget = "exec:env"\n'
    more = {
        "via": f'target = "x:1"\nlisten = ":0"\nvia = ["socks5://u@127.0.0.1:9?password_env={variable}"]\n',
        "listen": f'listen = "socks5://:0"\nuser = "u"\npassword_env = "{variable}"\n',  # of the command itself
    }
    path = tmp_path / "relay.toml"
    path.write_text(first)
    with commands() as start:
        command = start(str(path), command="up")
        line = command.process.stdout.readline()
        host, port = re.fullmatch(r"one: listening on (\S+):(\d+) → exec:env\n", line).groups()
        assert WORD.encode() in read((host, port))
        path.write_text(first + "[tunnels.two]\n" + more[key])
        done = run("ctl", "reload")
        assert "two: new" in done.stdout, done
        for _ in range(4):
            said = read((host, port))
            assert b"RELAY_TEST_OTHER=inherited" in said and WORD.encode() not in said
        assert command.end()[0] == 0


def test_ssh_does_not_get_it_and_logs_in_with_it(protected, serve):
    server: Server = serve(lambda end: end.sendall(b"hello"))
    host, port = server.address
    before = set(family(os.getpid()))
    with relay.connect(f"{host}:{port}", via=[protected]) as stream:
        stream.settimeout(WAIT)
        assert receive_all(stream) == b"hello"
        added = environments(set(family(os.getpid())) - before)
    assert (b"RELAY_TEST_OTHER=inherited" in added) == ("backend=openssh" in protected)
    assert WORD.encode() not in added


def test_a_spawned_relay_logs_in_with_it(protected, serve):
    server: Server = serve(lambda end: end.sendall(b"hello"))
    host, port = server.address
    with relay.spawn(":0", f"{host}:{port}", via=[protected]) as tunnel:
        assert read(tunnel.address) == b"hello"
        added = environments(set(family(tunnel.pid)) - {tunnel.pid})
    assert (b"RELAY_TEST_OTHER=inherited" in added) == ("backend=openssh" in protected)
    assert WORD.encode() not in added
