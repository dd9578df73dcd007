"""A stream that the server's policy forbids is a typed error, and a connection's reason is ``denied``."""

import contextlib
import socket

import pytest
from helpers import WAIT, echo, ended, fate_of_client, receive_exactly, wait_until
from sshd import FarEnd

import relay
from relay.testing.ssh.session import Session


def denied(url, target):
    with pytest.raises(relay.ConnectError) as failed:
        relay.connect(target, via=[url])
    assert failed.value.reason == "denied", str(failed.value)
    assert "\n" not in str(failed.value)
    with relay.Tunnel(relay.listen(":0"), relay.target(target, via=[url])) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel) == ["denied"]
    return str(failed.value)


def answers(url, target):
    with relay.connect(target, via=[url]) as client:
        client.settimeout(WAIT)
        client.sendall(b"x")
        return client.recv(1) == b"x"


def test_no_forwarding_at_all(backend, make_sshd, echo_server):
    url = FarEnd("sshd", backend, make_sshd("AllowTcpForwarding no")).url
    target = "{}:{}".format(*echo_server.address)
    assert target in denied(url, target)
    with pytest.raises(relay.ForwardError) as failed:
        relay.ssh_listen(url)
    assert "\n" not in str(failed.value)


def test_some_targets_only(backend, make_sshd, echo_server, serve):
    allowed, other = ("{}:{}".format(*server.address) for server in (echo_server, serve(echo)))
    url = FarEnd("sshd", backend, make_sshd(f"PermitOpen {allowed}")).url
    denied(url, other)
    assert answers(url, allowed)


def test_no_unix_sockets(backend, make_sshd, serve, tmp_path):
    """Sshd says no more than that the open failed, as if no program listened there."""
    url = FarEnd("sshd", backend, make_sshd("AllowStreamLocalForwarding no")).url
    with pytest.raises(relay.ConnectError) as failed:
        relay.connect(f"unix://{serve(echo, str(tmp_path / 'target')).address}", via=[url])
    assert failed.value.reason in ("denied", "refused", "unreachable")


def test_some_ports_to_listen_at_only(backend, make_sshd):
    url = FarEnd("sshd", backend, make_sshd("PermitListen 1")).url
    with pytest.raises(relay.ForwardError):
        relay.ssh_listen(url)


def test_a_port_that_is_taken(far_end, listener):
    port = listener.getsockname()[1]
    with pytest.raises(relay.ForwardError) as failed:
        relay.ssh_listen(far_end.url, bind_port=port)
    assert str(port) in str(failed.value)
    assert "\n" not in str(failed.value)


def test_no_sessions_are_needed(backend, make_sshd, echo_server):
    """Streams are no sessions: ``MaxSessions 0`` forbids shells and leaves forwarding."""
    url = FarEnd("sshd", backend, make_sshd("MaxSessions 0")).url
    assert answers(url, "{}:{}".format(*echo_server.address))


def test_too_many_channels(backend, make_ssh_server, over_ssh):
    server = make_ssh_server(max_channels=2)
    rig = over_ssh(FarEnd("embedded", backend, server).url)
    pairs = [rig.connect() for _ in range(2)]
    wait_until(lambda: server.channels == 2)
    assert fate_of_client(rig.tunnel.address) == "reset"
    pairs[0][0].close()
    pairs[0][1].close()
    wait_until(lambda: server.channels == 1)
    rig.connect()


def test_the_embedded_servers_refusals(backend, make_ssh_server, echo_server):
    server = make_ssh_server(permit=())
    url = FarEnd("embedded", backend, server).url
    denied(url, "{}:{}".format(*echo_server.address))
    url = FarEnd("embedded", backend, make_ssh_server(allow_forwarding="local")).url
    with pytest.raises(relay.ForwardError):
        relay.ssh_listen(url)


def test_a_login_that_is_not_accepted(backend, make_sshd, tmp_path):
    from sshd import make_key

    server = FarEnd("sshd", backend, make_sshd())
    make_key(tmp_path / "other")
    url = server.address(keyfile=tmp_path / "other")
    for attempt in (lambda: relay.connect("127.0.0.1:9", via=[url]), lambda: relay.ssh_listen(url)):
        with pytest.raises(relay.AuthenticationError) as failed:
            attempt()
        text = str(failed.value)
        assert "\n" not in text
        assert "publickey" in text
    with relay.Tunnel(relay.listen(":0"), relay.target("127.0.0.1:9", via=[url])) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        ended(tunnel)


def test_a_forwarded_stream_under_another_name(backend, ssh_server, monkeypatch, caplog):
    """The server has chosen a port, and announces its streams for port 0, as Twisted Conch does."""

    def announce(session, place, peer):
        return session.transport.ask("forwarded-tcpip", place.host, 0, *peer[:2])

    monkeypatch.setattr(Session, "_ask", announce)
    url = FarEnd("embedded", backend, ssh_server).url
    with contextlib.closing(relay.ssh_listen(url, "127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.address, WAIT) as client:
            if backend == "paramiko":
                stream, _ = listener.accept()
                with stream:
                    stream.socket.settimeout(WAIT)
                    client.sendall(b"x")
                    assert receive_exactly(stream.socket, 1) == b"x"
            else:
                assert client.recv(1) == b""
                wait_until(lambda: "ssh says: Server requests forwarding for unknown listen_port 0" in caplog.text)
