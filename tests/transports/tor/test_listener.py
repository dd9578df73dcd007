"""``relay.tor_listen``: logins at the control port, the key, losses and other programs, by the double of tor."""

import os
import socket
import stat
import threading

import pytest
from helpers import WAIT, echo, fate_of_client, receive_all, receive_exactly, reserved_port, send_and_end, wait_until

import relay
from relay.carriers.listing import carriers
from relay.errors import AuthenticationError, CarrierError, ConnectError, RelayError
from relay.testing import Tor, check_factory


@pytest.fixture
def tor():
    with Tor() as made:
        yield made


def exchange(tor, address):
    with relay.connect(address, [tor.hop], WAIT) as client:
        client.settimeout(WAIT)
        client.sendall(b"ping")
        assert receive_exactly(client, 4) == b"ping"


@pytest.mark.parametrize(
    "options", [{}, {"safe": False}, {"password": 'pass "word\\'}], ids=["safe", "cookie", "password"]
)
def test_a_service_by_each_login(options, serve):
    with Tor(**options) as tor:
        listener = relay.tor_listen(control=tor.control, port=8080, password=options.get("password"))
        with relay.Tunnel(listener, relay.tcp(*serve(echo).address), timeout=None) as tunnel:
            assert tunnel.address == listener.address == f"{listener.host}:8080" and listener.state == "up"
            exchange(tor, tunnel.address)
            wait_until(tunnel.recent)
            assert tunnel.recent()[0].identity == relay.Identity("tor", listener.host)
            (status,) = carriers()
            assert (status.kind, status.state) == ("tor", "up")
        wait_until(lambda: not tor.services)


def test_without_a_tunnel(tor):
    with relay.tor_listen(control=tor.control) as listener:
        with relay.connect(listener.address, [tor.hop], WAIT) as client:
            stream, peer = listener.accept()
            with stream:
                assert (peer, stream.half_close) == ("", False)
                stream.socket.setblocking(True)
                stream.socket.sendall(b"hello")
                assert receive_exactly(client, 5) == b"hello"
        waiting = threading.Timer(0.1, listener.close)
        waiting.start()
        with pytest.raises(OSError, match="Bad file descriptor"):
            listener.accept()
        waiting.join(WAIT)
    assert listener.state == "closed"


def test_an_end_is_held_back_until_the_answer(tor, serve):
    def answer(connection):
        connection.sendall(receive_exactly(connection, 8) * 1000)

    with relay.Tunnel(relay.tor_listen(control=tor.control), relay.tcp(*serve(answer).address), linger=5) as tunnel:
        forward = relay.Tunnel(relay.listen(":0"), relay.target(tunnel.address, [tor.hop]), linger=5)
        with forward, socket.create_connection(forward.address, WAIT) as client:
            client.settimeout(WAIT)
            send_and_end(client, b"question")
            assert receive_all(client) == b"question" * 1000


def test_conformance(tor):
    with socket.create_server(("127.0.0.1", 0), backlog=512) as target:
        factory = relay.target("{}:{}".format(*target.getsockname()), [tor.hop])
        check_factory(factory, target, half_close=False)


def test_it_is_published_again_after_a_restart_of_tor(tor, serve, tmp_path):
    keys = tmp_path / "site.key"
    listener = relay.tor_listen(control=tor.control, keys=keys)
    host = listener.host
    with relay.Tunnel(listener, relay.tcp(*serve(echo).address), timeout=None):
        tor.kill()
        wait_until(lambda: listener.state == "backing off")
        tor.restart()
        wait_until(lambda: host in tor.services)
        wait_until(lambda: listener.state == "up")
        exchange(tor, f"{host}:80")
    with relay.tor_listen(control=tor.control, keys=keys) as again:
        assert again.host == host
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600 and keys.read_bytes().startswith(b"== ed25519v1-secret")


def test_a_name_keeps_the_address(tor, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    hosts = []
    for session in ("web", "web", "other", "", ""):
        with relay.tor_listen(session, control=tor.control) as listener:
            hosts.append(listener.host)
    assert hosts[0] == hosts[1] and len(set(hosts)) == 4
    assert sorted(os.listdir(tmp_path / "relay" / "tor")) == ["other.dat", "web.dat"]


def test_a_lost_tor_resets_the_targets_connection(tor, serve):
    ends = []

    def note(connection):
        try:
            ends.append(connection.recv(1))
        except OSError as error:
            ends.append(error)

    with relay.Tunnel(relay.tor_listen(control=tor.control), relay.tcp(*serve(note).address), timeout=None) as tunnel:
        with relay.connect(tunnel.address, [tor.hop], WAIT):
            wait_until(tunnel.connections)
            wait_until(lambda: tunnel.connections()[0].state == "open")
            tor.kill()
            wait_until(lambda: ends)
    assert isinstance(ends[0], ConnectionResetError)


@pytest.fixture
def nothing():
    with reserved_port() as port:
        yield f"127.0.0.1:{port}"


def test_no_tor(nothing):
    with pytest.raises(ConnectError, match=r"^tor:\?control=.*refused.*; check that tor runs on this machine"):
        relay.tor_listen(control=nothing)


def test_what_answers_is_no_tor(serve):
    place = serve(lambda connection: connection.sendall(b"SSH-2.0-x\r\n" + receive_exactly(connection, 1)))
    with pytest.raises(ConnectError, match="this is no control port of tor"):
        relay.tor_listen(control="{}:{}".format(*place.address))


@pytest.mark.parametrize(
    ("given", "said"), [("wrong", "tor rejects the login .*; check the password"), (None, "wants a")]
)
def test_a_wrong_password(given, said):
    with Tor(password="right") as tor, pytest.raises(AuthenticationError, match=said) as failed:
        relay.tor_listen(control=tor.control, password=given)
    assert "right" not in str(failed.value) and "'wrong'" not in str(failed.value)


def test_a_cookie_that_cannot_be_read(tor):
    os.unlink(tor.cookie_file)
    with pytest.raises(AuthenticationError, match="cannot read tor's cookie .*; join tor's group"):
        relay.tor_listen(control=tor.control)


def test_a_file_that_is_no_cookie_is_not_sent(tor):
    with open(tor.cookie_file, "ab") as file:
        file.write(b"more")
    with pytest.raises(AuthenticationError, match="is not a cookie of tor"):
        relay.tor_listen(control=tor.control)
    assert "AUTHENTICATE" not in tor.commands and "AUTHCHALLENGE" not in tor.commands


def test_a_server_that_does_not_have_the_cookie_gets_no_proof(tor):
    with open(tor.cookie_file, "wb") as file:
        file.write(bytes(32))
    with pytest.raises(ConnectError, match="does not have the cookie"):
        relay.tor_listen(control=tor.control)
    assert "AUTHENTICATE" not in tor.commands


def test_a_service_that_is_there_already(tor, tmp_path):
    keys = tmp_path / "key"
    relay.tor_listen(control=tor.control, keys=keys).close()
    copy = tmp_path / "copy"
    copy.touch(0o600)
    copy.write_bytes(keys.read_bytes())
    with relay.tor_listen(control=tor.control, keys=keys):
        with pytest.raises(ConnectError, match="publishes the onion service already"):
            relay.tor_listen(control=tor.control, keys=copy)
        with pytest.raises(ConnectError, match="the key is in use"):
            relay.tor_listen(control=tor.control, keys=keys)


def test_a_damaged_key(tor, tmp_path):
    keys = tmp_path / "key"
    keys.touch(0o600)
    keys.write_bytes(b"x" * 96)
    with pytest.raises(RelayError, match="not a private key of an onion service .*; the file is unchanged"):
        relay.tor_listen(control=tor.control, keys=keys)


def test_another_users_program_does_not_get_in(tor, monkeypatch, caplog):
    with relay.tor_listen(control=tor.control) as listener:
        target = next(iter(tor.services.values()))[80]
        monkeypatch.setattr(listener._check, "user", os.geteuid() + 1)
        assert fate_of_client(target) == "reset"
    assert "rejected, because the tor's user is" in caplog.text


def test_a_close_while_it_waits_for_tor(nothing):
    made = []
    waiting = threading.Timer(0.2, lambda: made[0].close())
    waiting.start()
    from relay.addresses.parse import parse_listen
    from relay.api.urls import listener

    with pytest.raises(CarrierError, match="the listener was closed"):
        listener(parse_listen(f"tor:?control={nothing}"), (), made.append)
    waiting.join(WAIT)
