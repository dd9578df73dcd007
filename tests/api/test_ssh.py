"""``relay.ssh``: what it takes, and streams over it through a tunnel and without one."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from helpers import WAIT, Thread, TLSEnd, receive_exactly

import relay
from relay.addresses.ssh import SSHServer
from relay.api.ssh import server_with
from relay.testing import check_factory


def test_a_factory_keeps_its_promises(far_end, listener):
    with relay.ssh(far_end.url, *listener.getsockname()) as factory:
        check_factory(factory, listener)


def test_tls_to_a_target_behind_a_server(far_end, certificates, listener):
    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(WAIT)
            end = TLSEnd(connection, certificates.server(), server_side=True)
            end.sendall(end.recv(5)[::-1])

    serving = Thread(serve)
    url = f"tls://127.0.0.1:{listener.getsockname()[1]}?servername=localhost&ca={certificates.ca}"
    with relay.connect(url, via=[far_end.url], timeout=WAIT) as client:
        client.settimeout(WAIT)
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"olleh"
    serving.result()


def test_a_certificate_that_is_not_trusted_is_denied(far_end, certificates, listener):
    def serve():
        connection, _ = listener.accept()
        with connection, pytest.raises((ssl.SSLError, ConnectionError)):
            connection.settimeout(WAIT)
            TLSEnd(connection, certificates.server(), server_side=True).recv(1)

    serving = Thread(serve)
    with pytest.raises(relay.ConnectError, match="certificate was not accepted") as caught:
        relay.connect(f"tls://127.0.0.1:{listener.getsockname()[1]}", via=[far_end.url], timeout=WAIT)
    assert caught.value.reason == "denied"
    serving.result()


def test_keywords_say_more_than_the_url():
    server = server_with("ssh://me@bastion:2222?keepalive=5&compress=yes", {"keyfile": Path("/k"), "keepalive": 15.0})
    assert server == SSHServer("bastion", "me", 2222, keyfile="/k", keepalive=5.0, compress=True)
    assert server_with("me@bastion", {"keepalive": None}).keepalive is None


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "text"),
    [
        (("bastion", "db", 0), {}, ValueError, "port"),
        (("bastion", "", 1), {}, ValueError, "host"),
        (("bastion", "db", "1"), {}, TypeError, "port"),
        (("-bastion", "db", 1), {}, ValueError, "server"),
        ((None, "db", 1), {}, TypeError, "server"),
        (("bastion", "db", 1), {"backend": "putty"}, ValueError, "backend"),
        (("bastion", "db", 1), {"keepalive": 0}, ValueError, "keepalive"),
        (("bastion", "db", 1), {"keepalive": "15"}, TypeError, "keepalive"),
        (("bastion", "db", 1), {"hostkey": "MD5:aa"}, ValueError, "hostkey"),
        (("bastion", "db", 1), {"password": 7}, TypeError, "password"),
        (("bastion", "db", 1), {"accept_new": "yes"}, TypeError, "accept_new"),
        (("bastion", "db", 1), {"via": "ssh://a"}, TypeError, "via"),
        (("bastion", "db", 1), {"via": ["tcp://a:1"]}, ValueError, "hop"),
    ],
)
def test_bad_arguments_are_named_at_the_call(arguments, keywords, error, text):
    with pytest.raises(error, match=text):
        relay.ssh(*arguments, **keywords)


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="unexpected keyword"):
        relay.ssh("bastion", "db", 1, pasword="x")


def test_no_secret_is_shown():
    factory = relay.ssh("ssh://me:hush@bastion", "db", 1, passphrase="hush")
    assert "hush" not in repr(factory)
