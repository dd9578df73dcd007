"""Identities of clients: the address, the process, the login."""

import os
import socket

import pytest

from relay.streams.identity import Certificate, Identity, client_text, identity_of_peer, identity_of_process


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        (("192.0.2.7", 5), "192.0.2.7"),
        (("2001:db8::1", 5, 0, 0), "2001:db8::1"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::1"),
        (("::ffff:192.0.2.7", 5, 0, 0), "192.0.2.7"),
        (("::ffff:1", 5, 0, 0), "::ffff:1"),
    ],
)
def test_a_tcp_client_is_its_address(peer, host):
    assert identity_of_peer(peer) == Identity("tcp", host, host, 5)
    assert str(identity_of_peer(peer)) == f"tcp:{host}"


@pytest.mark.parametrize("peer", [None, "", "a destination", (), ("host",), (1, 2), ("host", "port"), b"\0name"])
def test_what_is_no_address_is_no_identity(peer):
    assert identity_of_peer(peer) is None


def test_a_long_name_is_cut_and_a_hostile_one_is_printable():
    identity = identity_of_peer(("x\n" * 5000, 1))
    assert len(identity.name) <= 255
    assert identity.name.isprintable()
    login = Identity("tcp", "h", "192.0.2.7", 1).with_login("socks", "a\x1b[31m" * 3000)
    assert login.name.isprintable()
    assert len(login.name) <= 255
    assert (login.kind, login.host) == ("socks", "192.0.2.7")


def test_the_process_at_a_unix_socket():
    near, far = socket.socketpair(socket.AF_UNIX)
    with near, far:
        identity = identity_of_process(near)
    assert identity.kind == "unix"
    assert identity.process == os.getpid()
    assert identity.name == identity.user == str(os.getuid())
    assert identity.host is None


def test_another_socket_has_no_process():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
        assert identity_of_process(tcp) is None
    near, far = socket.socketpair(socket.AF_UNIX)
    far.close()
    near.close()
    assert identity_of_process(near) is None


@pytest.mark.parametrize(
    ("certificate", "name"),
    [
        (Certificate("cn", ("a.example",), ("spiffe://d/a",), "sha256:x"), "spiffe://d/a"),
        (Certificate("cn", ("a.example",), (), "sha256:x"), "a.example"),
        (Certificate("cn", (), (), "sha256:x"), "cn"),
        (Certificate(None, (), (), "sha256:x"), "sha256:x"),
    ],
)
def test_the_name_of_a_certificate(certificate, name):
    assert certificate.name == name


@pytest.mark.parametrize(
    ("address", "kind", "name", "text"),
    [
        ("192.0.2.7:5", "tcp", "192.0.2.7", "192.0.2.7:5"),
        ("192.0.2.7:5", "tls", "alice", "192.0.2.7:5 (tls:alice)"),
        ("127.0.0.1:46986", "socks", "1", "127.0.0.1:46986 (socks:1)"),
        ("192.0.2.7:5", "ssh", "192.0.2.7", "192.0.2.7:5"),
        ("[::1]:5", "ssh", "::1", "[::1]:5"),
        ("", "unix", "www-data", "unix:www-data"),
        ("abc.b32.i2p", "i2p", "abc.b32.i2p", "abc.b32.i2p"),
        ("192.0.2.7:5", "", "", "192.0.2.7:5"),
        ("", "", "", "a local client"),
    ],
)
def test_a_client_as_text(address, kind, name, text):
    assert client_text(address, kind, name) == text


def test_the_fields_of_a_log():
    assert Identity("tls", "alice", "192.0.2.7").as_fields() == {"kind": "tls", "name": "alice"}
    assert Identity("ssh", "s", is_verified=False).as_fields() == {"kind": "ssh", "name": "s", "verified": False}
