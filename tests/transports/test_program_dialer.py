"""``relay.transports.program_dialer``: a command of this machine as a target or as a hop."""

from __future__ import annotations

import logging
import os
import shlex
import time

import pytest
from helpers import WAIT, Server, receive_all, receive_exactly, receive_until_reset, refusing, wait_until
from program_rig import BRIDGE, CASES, command, failure, said

import relay
from relay.addresses.hops import Command
from relay.addresses.values import TCPAddress
from relay.eventloop.sockets import reset
from relay.process import start
from relay.testing import check_factory
from relay.transports.program_dialer import Local


@pytest.fixture(autouse=True, scope="module")
def spawner():
    """The thread that makes all children outlives every test, so it is there before the first one."""
    start(["true"]).wait(WAIT)


@pytest.mark.parametrize("case", CASES, ids=[case.__name__ for case in CASES])
def test_a_program(case):
    def opened(*words):
        stream = Local(command(*words))(deadline=time.monotonic() + WAIT)
        stream.socket.settimeout(WAIT)
        return stream

    case(opened)


def test_its_name_shows_the_program_and_no_argument():
    factory = Local(Command("/usr/bin/nc --password hunter2 %h %p"))
    assert factory.target == "exec:nc …"
    assert "hunter2" not in repr(factory)


def test_as_a_hop_it_is_told_where_to_lead(serve):
    server: Server = serve(lambda end: end.sendall(end.recv(100)[::-1]))
    hop = Command(f"{shlex.join(BRIDGE)} %h %p")
    assert hop.is_hop
    with Local(hop.to(TCPAddress(*server.address)))() as stream:
        stream.socket.settimeout(WAIT)
        stream.socket.sendall(b"word")
        assert receive_all(stream.socket) == b"drow"


def test_a_hop_that_fails_is_named_by_the_error():
    with refusing() as (host, port), Local(Command(f"{shlex.join(BRIDGE)} %h %p").to(TCPAddress(host, port)))() as made:
        made.socket.settimeout(WAIT)
        assert receive_until_reset(made.socket) == b""
        text = str(failure(made))
    assert text.startswith("exec:") and "ended with status 1 (ConnectionRefusedError: " in text


def test_what_it_leads_to_may_have_another_name_than_it_has_in_errors():
    factory = Local(Command("sh -c 'exit 1'"))
    factory.target = "db:5432"
    with factory() as made:
        assert made.target == "db:5432"
        made.socket.settimeout(WAIT)
        assert receive_until_reset(made.socket) == b""
        assert str(failure(made)) == "exec:sh …: ended with status 1"


def test_a_factory_in_a_tunnel(listener):
    check_factory(Local(command(*BRIDGE, *map(str, listener.getsockname()))), listener)


def test_a_socket_for_a_user_leaves_nothing():
    user = Local(Command("cat")).open_socket(time.monotonic() + WAIT)
    user.settimeout(WAIT)
    user.sendall(b"word")
    assert user.recv(10) == b"word"
    user.close()


@pytest.mark.parametrize("text", ["exec:cat", "exec:sh -c 'cat; exec sleep 1000'"])
def test_a_socket_of_connect_leaves_nothing(text, monkeypatch):
    monkeypatch.setattr("relay.transports.program._MOMENT", 0.05)
    with relay.connect(text) as user:
        user.settimeout(WAIT)
        user.sendall(b"word")
        assert user.recv(10) == b"word"


def test_a_detached_socket_leaves_nothing_either():
    user = Local(Command("cat")).open_socket(time.monotonic() + WAIT)
    os.close(user.detach())


def test_a_program_that_fails_resets_the_client_of_a_tunnel(relayed, caplog):
    caplog.set_level(logging.INFO, "relay")
    rig = relayed(Local(Command("sh -c 'echo half of it; echo no more >&2; exit 1'")))
    client = rig.client()
    with pytest.raises(ConnectionResetError):
        receive_all(client)
    wait_until(rig.tunnel.recent)
    assert rig.tunnel.recent()[0].reason == "target_reset"
    assert "exec:sh …: no more" in said(caplog)
    assert any("exec:sh …: ended with status 1 (no more)" in one.getMessage() for one in caplog.records)


def test_a_program_that_is_missing_resets_the_client_of_a_tunnel(relayed):
    rig = relayed(Local(Command("no-such-program")))
    with pytest.raises(ConnectionResetError):
        receive_all(rig.client())
    wait_until(rig.tunnel.recent)
    assert rig.tunnel.recent()[0].reason == "unreachable"


def test_a_client_that_resets_ends_the_program(relayed, tmp_path):
    taken = tmp_path / "taken"
    rig = relayed(Local(command("sh", "-c", 'echo on; cat >"$0.part" && mv "$0.part" "$0"', str(taken))))
    client = rig.client()
    assert receive_exactly(client, 3) == b"on\n"
    reset(client)
    wait_until(rig.tunnel.recent)
    assert rig.tunnel.recent()[0].reason == "client_reset"
    rig.close()
    assert not taken.exists()


def test_closing_a_tunnel_ends_its_programs(relayed):
    rig = relayed(Local(Command("sh -c 'echo on; exec sleep 1000'")))
    clients = [rig.client() for _ in range(5)]
    for client in clients:
        assert receive_exactly(client, 3) == b"on\n"
    rig.close()
