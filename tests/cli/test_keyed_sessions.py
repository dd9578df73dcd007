"""The sessions to targets whose keys only one process can have."""

from __future__ import annotations

import contextlib
import socket

import pytest
from helpers import WAIT, exchange
from sam_rig import DEST, KEY, ScriptedBridge

import relay
from relay.addresses.i2p import I2PRouter, I2PTarget
from relay.addresses.i2p_parser import parse_sam
from relay.addresses.values import TCPAddress
from relay.cli.keyed_sessions import KeyedSessions
from relay.cli.member import Member
from relay.cli.options import Options
from relay.cli.plan import make_plan
from relay.cli.preflight import Preflight
from relay.transports.i2p import key_file
from relay.transports.i2p.key_file import KeyFile


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens a tunnel to a destination, whose session has keys or has none; returns it with the bridge."""
    monkeypatch.setattr("relay.transports.i2p.connector._REMEMBERED", (0.0, 0.0))
    with contextlib.ExitStack() as stack:
        bridge = stack.enter_context(contextlib.closing(ScriptedBridge()))
        key_file.write(tmp_path / "keys", KEY)

        def open_one(keys, where="target", **options):
            router = I2PRouter(sam=parse_sam(bridge.name), keys=keys)
            end, via = (I2PTarget(DEST, None, router), ()) if where == "target" else (I2PTarget(DEST), (router,))
            plan = make_plan(TCPAddress("127.0.0.1", 0), end, Options(**options), name="one", via=via)
            member = Member(plan)
            member.on_opened(plan.open(Preflight(names=False)))
            stack.callback(member.close)
            return member, bridge

        yield open_one


def is_free(path):
    with contextlib.suppress(relay.errors.SAMError), KeyFile.open(path, lambda: KEY):
        return True
    return False


@pytest.mark.parametrize("where", ["target", "hop"])
def test_they_end_with_their_connections_and_begin_with_the_next_client(opened, tmp_path, where):
    path = str(tmp_path / "keys")
    member, bridge = opened(path, where, drain=0.0)
    address = member.opened.tunnel.address
    sessions = KeyedSessions([member])
    assert sessions.members == [member]
    with socket.create_connection(address, WAIT) as client:
        exchange(client, bridge.stream())
        assert not is_free(path)
        sessions.end()
        assert is_free(path)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    with socket.create_connection(address, WAIT) as client:  # it waits
        assert is_free(path)
        sessions.resume()
        exchange(client, bridge.stream())
        assert not is_free(path)


def test_warm_streams_do_not_keep_a_session(opened, tmp_path):
    path = str(tmp_path / "keys")
    member, bridge = opened(path, warm=1)
    member.opened.make_send.ready(WAIT)
    bridge.stream()
    sessions = KeyedSessions([member])
    sessions.end()
    assert is_free(path)
    sessions.resume()
    member.opened.make_send.ready(WAIT)
    bridge.stream()


def test_other_tunnels_stay_as_they_are(opened):
    member, bridge = opened(None)
    sessions = KeyedSessions([member])
    assert not sessions.members
    with socket.create_connection(member.opened.tunnel.address, WAIT) as client:
        far = bridge.stream()
        sessions.end()
        exchange(client, far)
