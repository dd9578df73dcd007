"""The sessions to targets whose keys only one process can have."""

import contextlib
import socket

import pytest
from helpers import WAIT, exchange, receive_exactly
from sam_rig import DEST, KEY, ScriptedBridge

from relay.addresses.i2p import I2PRouter, I2PTarget
from relay.addresses.i2p_parser import parse_sam
from relay.addresses.parse import parse_listen
from relay.addresses.values import TCPAddress
from relay.daemon.change.keyed_sessions import KeyedSessions
from relay.daemon.member import Member
from relay.daemon.options import Options
from relay.daemon.plan import make_plan, make_proxy_plan
from relay.daemon.preflight import Preflight
from relay.transports.dynamic import parse_rule
from relay.transports.i2p import key_file


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens a tunnel to a destination, whose session has keys or has none; returns it with the bridge."""
    monkeypatch.setattr("relay.transports.i2p.connector._REMEMBERED", (0.0, 0.0))
    with contextlib.ExitStack() as stack:
        bridge = stack.enter_context(contextlib.closing(ScriptedBridge()))
        key_file.write(tmp_path / "keys", KEY)

        def open_one(keys, where="target", others=(), **options):
            router = I2PRouter(sam=parse_sam(bridge.name), keys=keys)
            end, via = (I2PTarget(DEST, None, router), ()) if where == "target" else (I2PTarget(DEST), (router,))
            listen = TCPAddress("127.0.0.1", 0)
            if where == "rule":
                rules = [parse_rule(f"*.i2p=i2p:?keys={keys}&sam={bridge.name}"), parse_rule("*=direct")]
                listen = parse_listen("socks5://127.0.0.1:0")
                plan = make_proxy_plan(listen, Options(**options), name="one", rules=rules)
            else:
                plan = make_plan(listen, end, Options(**options), name="one", via=via, others=others)
            member = Member(plan)
            member.on_opened(plan.open(Preflight(names=False)))
            stack.callback(member.close)
            return member, bridge

        yield open_one


def is_left(path):
    """Return whether another process could have the keys."""
    return key_file.wait_until_free([path], 0.0)


def is_echoed(client):
    client.sendall(b"x")
    return receive_exactly(client, 1) == b"x"


@pytest.mark.parametrize("where", ["target", "hop"])
def test_they_end_with_their_connections_and_begin_with_the_next_client(opened, tmp_path, where):
    path = str(tmp_path / "keys")
    member, bridge = opened(path, where, drain=0.0)
    address = member.relay.address
    sessions = KeyedSessions([member])
    assert sessions.members == [member]
    with socket.create_connection(address, WAIT) as client:
        exchange(client, bridge.stream())
        assert not is_left(path)
        sessions.end()
        assert is_left(path)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    with socket.create_connection(address, WAIT) as client:  # it waits
        assert is_left(path)
        sessions.resume()
        exchange(client, bridge.stream())
        assert not is_left(path)


def test_warm_streams_do_not_keep_a_session(opened, tmp_path):
    path = str(tmp_path / "keys")
    member, bridge = opened(path, warm=1)
    member.make_send.ready(WAIT)
    bridge.stream()
    sessions = KeyedSessions([member])
    sessions.end()
    assert is_left(path)
    sessions.resume()
    member.make_send.ready(WAIT)
    bridge.stream()


def test_other_tunnels_stay_as_they_are(opened):
    member, bridge = opened(None)
    sessions = KeyedSessions([member])
    assert not sessions.members
    with socket.create_connection(member.relay.address, WAIT) as client:
        far = bridge.stream()
        sessions.end()
        exchange(client, far)


def begin_socks(address):
    """Return a client of a SOCKS proxy that has not said yet where it wants to go."""
    client = socket.create_connection(address, WAIT)
    client.sendall(b"\x05\x01\x00")
    assert receive_exactly(client, 2) == b"\x05\x00"
    return client


def ask(client, host, port):
    """Ask a SOCKS proxy for a place; return its reply."""
    name = host.encode()
    client.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
    return receive_exactly(client, 10)[1]


def test_only_what_goes_over_a_session_ends_with_it(opened, echo_server, tmp_path):
    """The clients of a proxy that go another way stay; one that asks for the session after its end is refused."""
    path = str(tmp_path / "keys")
    member, bridge = opened(path, "rule", drain=0.0)
    bridge.names["site.i2p"] = DEST
    address = member.relay.address
    sessions = KeyedSessions([member])
    with begin_socks(address) as direct, begin_socks(address) as late, begin_socks(address) as client:
        assert ask(direct, *echo_server.address) == 0
        sessions.end()  # no client uses it
        assert is_echoed(direct)
        sessions.resume()
        assert ask(client, "site.i2p", 80) == 0
        exchange(client, bridge.stream())
        sessions.end()
        assert is_left(path)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        assert is_echoed(direct)
        assert ask(late, "site.i2p", 80) != 0
        assert is_left(path)
        sessions.resume()
        with begin_socks(address) as other:
            assert ask(other, "site.i2p", 80) == 0
            exchange(other, bridge.stream())
        assert is_echoed(direct)


def test_a_client_of_another_target_stays(opened, echo_server, tmp_path):
    path = str(tmp_path / "keys")
    member, bridge = opened(path, others=[((), TCPAddress(*echo_server.address))], drain=0.0)
    address, make_send = member.relay.address, member.make_send
    with socket.create_connection(address, WAIT) as first:
        exchange(first, bridge.stream())
        make_send.set_enabled(make_send.states()[0].target, False)
        with socket.create_connection(address, WAIT) as second:
            assert is_echoed(second)
            KeyedSessions([member]).end()
            with contextlib.suppress(ConnectionResetError):
                assert first.recv(1) == b""
            assert is_echoed(second)
            assert is_left(path)
