"""``relay.transports.proxies.redirect_server``: without a firewall; :mod:`test_redirected_connections` has one."""

import socket
import sys

import pytest
from helpers import Thread, ended, fate_of_client

import relay
from relay.streams.stream import RejectedRequest
from relay.transports.proxies.redirect_server import RedirectListener, original


class Redirected:
    """A socket of a client whom a firewall has redirected, as the kernel describes it."""

    def __init__(self, family, near, places):
        self.family = family
        self._near = near
        self._places = places

    def getsockname(self):
        return self._near

    def getsockopt(self, level, option, size):
        assert option == 80
        place = self._places.get(level)
        if place is None:
            raise FileNotFoundError
        assert len(place) == size
        return place


V4 = bytes.fromhex("02001f90c0000201") + bytes(8)  # linux/in.h: 192.0.2.1, port 8080
V6 = bytes.fromhex("0a001f9100000000") + socket.inet_pton(socket.AF_INET6, "2001:db8::1") + bytes(4)
HERE = ("127.0.0.1", 1081)


def asked(client, listen=HERE):
    listener = RedirectListener.__new__(RedirectListener)
    listener.address = listen
    return listener.handshake(client).outcome


@pytest.mark.parametrize(
    ("client", "place"),
    [
        (Redirected(socket.AF_INET, HERE, {socket.SOL_IP: V4}), "192.0.2.1:8080"),
        (Redirected(socket.AF_INET6, ("::1", 1081, 0, 0), {socket.IPPROTO_IPV6: V6}), "[2001:db8::1]:8081"),
        (Redirected(socket.AF_INET6, ("::ffff:127.0.0.1", 1081, 0, 0), {socket.SOL_IP: V4}), "192.0.2.1:8080"),
    ],
    ids=["IPv4", "IPv6", "IPv4 at a socket of IPv6"],
)
def test_the_target_is_what_the_client_has_connected_to(client, place):
    outcome = asked(client)
    assert str(outcome) == place
    assert (outcome.is_redirected, outcome.here, outcome.early, outcome.failure_reply) == (True, None, b"", None)
    assert outcome.success_reply == b""


def test_another_port_or_another_host_is_a_target():
    for place in ("1f907f000001", "0439c0000201"):
        client = Redirected(socket.AF_INET, HERE, {socket.SOL_IP: bytes.fromhex(f"0200{place}") + bytes(8)})
        assert asked(client).is_redirected


@pytest.mark.parametrize(
    ("place", "listen"),
    [
        ("7f000001", HERE),
        ("7f000001", ("0.0.0.0", 1081)),
        ("7f000001", ("::", 1081, 0, 0)),
        ("00000000", HERE),
    ],
)
def test_the_listener_itself_is_no_target(place, listen):
    client = Redirected(socket.AF_INET, HERE, {socket.SOL_IP: bytes.fromhex("02000439" + place) + bytes(8)})
    outcome = asked(client, listen)
    text = "it has connected to this listener itself; see relay help redirect"
    assert outcome == RejectedRequest(None, text)


def test_an_error_of_the_kernel_is_no_target():
    outcome = asked(Redirected(socket.AF_INET, HERE, {}))
    assert outcome == RejectedRequest(None, "no firewall has redirected it here; see relay help redirect")
    near, far = socket.socketpair()
    with near, far, pytest.raises(OSError, match="not supported"):
        original(near)


def test_a_client_that_was_not_redirected_is_reset():
    with relay.Tunnel(relay.listen("redirect://127.0.0.1:0"), relay.dynamic(), timeout=None) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel) == ["denied"]


def test_without_a_tunnel_it_is_reset_too():
    with relay.listen("redirect://127.0.0.1:0") as listener:
        assert listener.protected is None
        waiting = Thread(listener.accept)
        assert fate_of_client(listener.address) == "reset"
        listener.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            waiting.result()


def test_other_systems_have_no_such_thing(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match="^redirect://: only Linux says"):
        RedirectListener(socket.create_server(("127.0.0.1", 0)))
