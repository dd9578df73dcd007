"""``relay.transports.ssh.connector``: who shares a connection, how it is reached, and what comes of its streams."""

import contextlib
import dataclasses
import os
import select
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from helpers import WAIT, ended, fate_of_client, in_child, makes, receive_exactly, wait_until
from ssh_world import World

import relay
from relay.addresses.destinations import b32_of
from relay.addresses.ssh import SSHServer
from relay.addresses.values import TCPAddress
from relay.carriers import pool
from relay.eventloop.sockets import Endpoint
from relay.streams.connect import SocketDialer
from relay.testing import SAMBridge
from relay.transports.chain import chain, network
from relay.transports.ssh import connector
from relay.transports.ssh.connection import GREETING, KEY_EXCHANGE, LOGIN, IncompatibleError, Settings
from relay.transports.ssh.connector import backend_for
from relay.transports.ssh.dialer import SSHFactory

TARGET = TCPAddress("db.internal", 5432)


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


@pytest.fixture
def factory(world):
    """Makes factories that are closed with the test."""
    yield from makes(lambda *hosts, **options: chain(tuple(SSHServer(host, **options) for host in hosts), TARGET))


def test_a_stream_of_i2p_that_leads_nowhere_does_not_cost_the_whole_attempt(monkeypatch, spawner_thread):
    monkeypatch.setattr(connector, "_ANSWER", 0.3)
    with SAMBridge() as bridge:
        with relay.i2p_listen("", sam=bridge.sam) as gone:
            via = [f"i2p:?sam={bridge.sam}", f"ssh://me@{b32_of(gone.dest)}?config={os.devnull}"]
        with contextlib.closing(relay.target(str(TARGET), via)) as make:
            with pytest.raises(relay.ConnectError, match="hop 2 of 2 .* it has not sent an SSH version"):
                make.ready(WAIT)


def test_several_carriers_prefer_different_addresses():
    addresses, one, other = connector._Addresses(), object(), object()
    here = [Endpoint(socket.AF_INET, (host, 22)) for host in ("127.0.0.1", "127.0.0.2")]
    name = SocketDialer("h:22", lambda: here, literal=False, name=object())

    def first_for(user):
        return addresses.dialer(user, name).resolve()[0].address[0]

    addresses.connected(one, SimpleNamespace(socket=SimpleNamespace(getpeername=lambda: ("127.0.0.1", 22))))
    assert (first_for(one), first_for(other)) == ("127.0.0.1", "127.0.0.2")
    literal = SocketDialer("h:22", lambda: here, literal=True)
    assert addresses.dialer(one, literal) is literal


def test_one_connection_carries_the_streams_of_all_who_ask_for_the_same(world, factory):
    one, other, different = factory("bastion"), factory("bastion"), factory("bastion", user="somebody")
    for make in (one, other, one):
        make().close()
    assert len(world.connections) == 1
    different().close()
    assert len(world.connections) == 2
    one.close()
    assert not world.connections[0].closed
    other.close()
    assert world.connections[0].closed


def test_callables_are_told_apart_by_identity(world, factory):
    def secret():
        return "s"

    for password in (secret, secret, lambda: "s"):
        factory("bastion", password=password)().close()
    assert len(world.connections) == 2


def test_a_factory_that_is_forgotten_while_it_connects_lets_it_go(world, monkeypatch):
    entered, ended = threading.Event(), threading.Event()

    def never(settings, stream, deadline, cancel, lost, trace):
        entered.set()
        with stream:
            select.select([cancel], [], [], WAIT)
        ended.set()
        raise relay.ConnectError("given up")

    monkeypatch.setattr(connector, "import_module", lambda *_: SimpleNamespace(connect=never))
    make = SSHFactory(SSHServer("bastion"), network(), TARGET)
    make.dial(None, lambda outcome: None)()
    assert entered.wait(WAIT)
    del make
    assert ended.wait(WAIT / 2)


def test_adapted_settings_are_those_of_each_attempt_and_of_a_connection_of_their_own(world):
    def adapt(settings):
        return dataclasses.replace(settings, user="adapted")

    with contextlib.ExitStack() as stack:
        for how in (adapt, adapt, None):
            make = SSHFactory(SSHServer("bastion", "me"), network(), TARGET, how)
            stack.callback(make.close)
            make().close()
    assert [each.settings.user for each in world.connections] == ["adapted", "me"]


def test_a_forked_child_makes_a_connection_of_its_own(world, factory):
    make = factory("bastion")
    make().close()
    with pool._pool.ref_lock, pool._pool.lock:
        assert in_child(lambda: make().close() or len(world.connections) == 2) == 0
    make().close()
    assert len(world.connections) == 1


def test_ready_raises_what_is_wrong_at_once(world, factory):
    world.errors = [relay.ConnectError("ssh://bastion: refused", reason="refused")] * 500
    make = factory("bastion")
    with pytest.raises(relay.ConnectError, match="ssh://bastion: refused"):
        make.ready()
    world.errors.clear()
    make.ready()
    assert make.state == "up", "it was tried again in the background"
    with pytest.raises(ValueError, match="timeout"):
        make.ready(-1)


def test_a_hop_that_cannot_be_reached_is_told_after_one_attempt(world, factory):
    world.errors = [relay.ConnectError("ssh://first: refused", reason="refused")] * 500
    make = factory("first", "second")
    begun = time.monotonic()
    with pytest.raises(relay.ConnectError, match=r"^hop 1 of 2 \(ssh://first\): refused") as caught:
        make.ready(3 * WAIT)
    assert time.monotonic() - begun < WAIT
    assert caught.value.reason == "refused"
    world.errors.clear()
    make(deadline=time.monotonic() + WAIT).close()


def test_a_hop_that_was_given_replaces_the_configurations(world, factory):
    world.settings["inner"] = {"jumps": (SSHServer("a"),), "command": "false"}
    factory("mine", "inner")().close()
    assert [one.settings.hostname for one in world.connections] == ["mine.example", "inner.example"]


@pytest.mark.parametrize("backend", [None, "openssh"])
def test_jumps_in_circles_end_before_anything_is_connected(world, factory, monkeypatch, backend):
    monkeypatch.setattr(connector.shutil, "which", lambda name: "/usr/bin/ssh")
    world.settings["a"] = {"jumps": (SSHServer("b"),)}
    world.settings["b"] = {"jumps": (SSHServer("a"),)}
    with pytest.raises(relay.RelayError, match="ProxyJump loop"):
        factory("a", backend=backend)()
    assert not world.connections


def test_a_server_that_paramiko_cannot_speak_to_is_left_to_the_client(world, factory, monkeypatch):
    monkeypatch.setattr(connector.shutil, "which", lambda name: "/usr/bin/ssh")
    world.errors = [IncompatibleError("ssh://bastion: no algorithm in common")]
    make = factory("bastion")
    make().close()
    world.connections[0].lose()
    make(deadline=time.monotonic() + WAIT).close()
    assert [one.backend for one in world.connections] == [".openssh.backend"] * 2


@pytest.mark.parametrize("stage", [KEY_EXCHANGE, LOGIN])
def test_a_server_that_ends_each_login_with_paramiko_is_left_to_the_client(world, factory, monkeypatch, caplog, stage):
    monkeypatch.setattr(connector.shutil, "which", lambda name: "/usr/bin/ssh")
    world.errors = [relay.CarrierError("ssh://bastion: it hung up", stage=stage)] * 3
    make = factory("bastion")
    make(deadline=time.monotonic() + WAIT).close()
    assert [one.backend for one in world.connections] == [".openssh.backend"]
    said = "ssh://bastion: it hung up; 3 times in a row; trying the OpenSSH client instead"
    assert [one.getMessage() for one in caplog.records].count(said) == 1


@pytest.mark.parametrize(
    ("options", "client", "stage", "attempts"),
    [
        ({"backend": "paramiko"}, "/usr/bin/ssh", LOGIN, 3),
        ({}, None, LOGIN, 3),
        ({}, "/usr/bin/ssh", GREETING, 3),
        ({}, "/usr/bin/ssh", LOGIN, 4),
    ],
)
def test_a_server_that_ends_each_login_is_a_failure(world, factory, monkeypatch, options, client, stage, attempts):
    monkeypatch.setattr(connector.shutil, "which", lambda name: client)
    world.errors = [relay.CarrierError("ssh://bastion: it hung up", stage=stage) for _ in range(9)]
    make = factory("bastion", **options)
    with pytest.raises(relay.CarrierError, match=f"hung up; {attempts} times in a row"):
        make(deadline=time.monotonic() + WAIT)
    assert make.state == "failed" and len(world.errors) == 9 - attempts


def test_a_hop_in_front_that_ends_each_login_is_a_failure_of_its_own(world, factory, monkeypatch, caplog):
    monkeypatch.setattr(connector.shutil, "which", lambda name: "/usr/bin/ssh")
    world.errors = [relay.CarrierError("ssh://first: it hung up", stage=LOGIN) for _ in range(9)]
    make = factory("first", "second")
    with pytest.raises(relay.CarrierError, match=r"^hop 1 of 2 \(ssh://first\): it hung up; 4 times in a row$"):
        make(deadline=time.monotonic() + WAIT)
    assert make.state == "failed" and len(world.errors) == 5
    assert caplog.text.count("trying the OpenSSH client instead") == 1


class OnceAwaited(list):
    """Errors of attempts that fail only when a client waits for the carrier."""

    def pop(self, index):
        wait_until(lambda: any(carrier._waiters for carrier in [*pool._pool.carriers.values()]))
        return super().pop(index)


def test_a_client_that_waits_while_nothing_is_in_common_is_refused(world, factory, caplog):
    world.errors = OnceAwaited([IncompatibleError("ssh://bastion: it and paramiko have no cipher in common")])
    with relay.Tunnel(relay.listen(":0"), factory("bastion", backend="paramiko"), name="mine") as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel) == ["denied"]
    assert [one.levelname for one in caplog.records if "no cipher in common" in one.getMessage()] == ["WARNING"]


def test_a_proxy_command_that_ends_is_named(world, factory, spawner_thread):
    world.settings["inner"] = {"command": "sh -c 'exit 3'"}
    make = factory("inner")
    make().close()
    stream = world.connections[0].stream
    stream.socket.settimeout(WAIT)
    with pytest.raises(ConnectionResetError):
        stream.socket.recv(1)
    wait_until(lambda: str(stream.failure()) == "the ProxyCommand: ended with status 3")


def test_a_proxy_command_is_the_way(world, factory, spawner_thread):
    world.settings["inner"] = {"command": "cat"}
    make = factory("inner")
    make().close()
    stream = world.connections[0].stream
    stream.socket.settimeout(WAIT)
    stream.socket.sendall(b"through a process")
    assert receive_exactly(stream.socket, 17) == b"through a process"
    assert not world.dialed


def test_the_client_finds_its_own_way(world, factory, monkeypatch):
    monkeypatch.setattr(connector.shutil, "which", lambda name: "/usr/bin/ssh")
    world.settings["inner"] = {"jumps": (SSHServer("a"),), "requires_openssh": "GSSAPIAuthentication"}
    factory("inner")().close()
    (connection,) = world.connections
    assert connection.backend == ".openssh.backend" and connection.stream is None


@pytest.mark.parametrize("change", [{"requires_openssh": "a token"}, {}])
def test_a_hop_that_is_no_longer_on_the_way_is_let_go(world, factory, monkeypatch, change):
    monkeypatch.setattr(connector.shutil, "which", lambda name: "/usr/bin/ssh")
    world.settings["inner"] = {"jumps": (SSHServer("a"),)}
    make = factory("inner")
    make.ready()
    hop, inner = world.connections
    world.settings["inner"] = change
    inner.lose()
    wait_until(lambda: hop.closed and make.state == "up" and len(world.connections) == 3)


def test_a_socket_alone_keeps_the_connection(world, factory):
    make = factory("bastion")
    make.open_socket(None).close()
    assert make.state == "closed"
    wait_until(lambda: world.connections[0].closed)


@pytest.mark.parametrize("jumps", [(SSHServer("home"),), (SSHServer("b"), SSHServer("home")), (SSHServer("far"),)])
def test_a_jump_at_i2p_is_not_left_to_the_client(world, factory, monkeypatch, jumps):
    """It would look the name up in the DNS."""
    seen = []

    def dialer(target, below):
        seen.append(target.dest)
        return world.here(TARGET)

    monkeypatch.setattr("relay.transports.i2p.dialer.I2PFactory", dialer)
    world.names = {"home": "x.i2p"}
    world.settings = {"a": {"jumps": jumps}, "far": {"jumps": (SSHServer("home"),)}}
    with factory("a", backend="openssh")():
        assert seen == ["x.i2p"]
        assert world.connections[-1].stream is not None


def settings_for(server, **options):
    return Settings(server, "h", 22, "me", **options)


def test_which_backend(monkeypatch):
    monkeypatch.setattr(connector.shutil, "which", lambda name: "/usr/bin/ssh")
    server = SSHServer("h")
    assert backend_for(settings_for(server)) == "paramiko"
    assert backend_for(settings_for(server, requires_openssh="a key on a token")) == "openssh"
    assert backend_for(settings_for(SSHServer("h", backend="paramiko"), requires_openssh="a token")) == "paramiko"
    assert backend_for(settings_for(SSHServer("h", backend="openssh"))) == "openssh"
    monkeypatch.setattr(connector.shutil, "which", lambda name: None)
    with pytest.raises(relay.RelayError, match="ssh://h: a token needs the OpenSSH client.*install it"):
        backend_for(settings_for(server, requires_openssh="a token"))


def test_it_knows_why_there_is_no_connection(world, factory):
    make = factory("first", "second")
    assert make.last_error is None
    make.ready()
    assert make.last_error is None
    world.errors = [relay.ConnectError("ssh://second: refused", reason="refused")] * 500
    world.connections[1].lose()
    wait_until(lambda: make.last_error == "hop 2 of 2 (ssh://second): refused")


def test_the_log_says_why_a_lost_connection_is_still_away(world, factory, caplog):
    make = factory("bastion")
    make.ready()
    world.connections[0].errors = [relay.CarrierError("ssh://bastion: no answer for 45 s")]
    world.errors = [relay.ConnectError("ssh://bastion: refused", reason="refused")] * 500
    with relay.Tunnel(relay.listen(":0"), make, connect_timeout=0.6) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel) == ["connect_timeout"]
        wait_until(
            lambda: "ssh://bastion: no answer for 45 s; trying again" in caplog.text
        )  # not just that it was lost
    assert "not connected in time: " in caplog.text


def test_it_says_what_it_is(factory):
    make = factory("bastion", user="me", password="secret")
    assert repr(make) == "<relay factory to db.internal:5432 over ssh://me@bastion, not held>"
