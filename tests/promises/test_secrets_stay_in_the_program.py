"""A variable that an address names as the place of a secret reaches no program that is started, and still its use."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
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
