"""Bad input is a ``ValueError`` or ``TypeError`` at the call, that names the argument and what is allowed."""

import math
import socket

import pytest
from helpers import steady

import relay
from relay.testing import FakeListener


@pytest.fixture
def receive():
    """A listener that stays with the caller, for no constructor here succeeds."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening
        assert listening.fileno() >= 0, "a constructor that raises leaves its arguments with the caller"
        socket.create_connection(listening.getsockname()).close()


def factory():
    raise AssertionError("not called here")


async def coroutine_function():
    """As an asyncio program would write it."""


class AsyncCallable:
    async def __call__(self):
        """The same as an object."""


def test_a_socket_that_does_not_listen():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match=r"receive.*listen"):
            relay.Tunnel(bound, factory)
        assert bound.fileno() >= 0


def test_a_connected_socket():
    near, far = socket.socketpair()
    with near, far, pytest.raises(ValueError, match=r"receive.*listen"):
        relay.Tunnel(near, factory)


def test_a_closed_socket():
    with pytest.raises((ValueError, OSError), match="receive"):
        relay.Tunnel(closed_socket(), factory)


def closed_socket():
    made = socket.create_server(("127.0.0.1", 0))
    made.close()
    return made


def test_a_udp_socket():
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, pytest.raises(ValueError, match=r"receive.*stream"):
        relay.Tunnel(datagrams, factory)


def test_an_ssl_socket_that_listens_names_the_tls_form(certificates):
    with socket.create_server(("127.0.0.1", 0)) as plain:
        with certificates.server().wrap_socket(plain, server_side=True) as listening:
            with pytest.raises(TypeError, match="receive.*tls://"):
                relay.Tunnel(listening, factory)


@pytest.mark.parametrize("nonsense", [None, 80, "127.0.0.1:80", object(), ("127.0.0.1", 80)], ids=steady)
def test_a_receive_that_is_no_listener(nonsense):
    with pytest.raises(TypeError, match=r"receive.*accept"):
        relay.Tunnel(nonsense, factory)


def test_a_receive_without_close():
    class HalfAListener:
        def accept(self):
            raise OSError

    with pytest.raises(TypeError, match="receive"):
        relay.Tunnel(HalfAListener(), factory)


@pytest.mark.parametrize("nonsense", [None, 80, "127.0.0.1:80", object()], ids=steady)
def test_a_make_send_that_cannot_be_called(receive, nonsense):
    with pytest.raises(TypeError, match="make_send"):
        relay.Tunnel(receive, nonsense)


@pytest.mark.parametrize("make_send", [coroutine_function, AsyncCallable()], ids=["function", "object"])
def test_a_coroutine_function(receive, make_send):
    with pytest.raises(TypeError, match="make_send.*(coroutine|async)"):
        relay.Tunnel(receive, make_send)


@pytest.mark.parametrize("value", [0, -2, -100])
def test_nconnect_out_of_range(receive, value):
    with pytest.raises(ValueError, match="nconnect.*-1|nconnect.*−1"):
        relay.Tunnel(receive, factory, value)


@pytest.mark.parametrize("value", [1.5, "8", None, math.nan, math.inf, True], ids=repr)
def test_nconnect_that_is_no_whole_number(receive, value):
    with pytest.raises((TypeError, ValueError), match="nconnect"):
        relay.Tunnel(receive, factory, nconnect=value)


@pytest.mark.parametrize("name", ["timeout", "connect_timeout", "idle_timeout", "linger"])
@pytest.mark.parametrize("value", [-1, -0.001, math.nan, -math.inf, "soon", "60", b"1", [], object()], ids=steady)
def test_a_time_that_is_none(receive, name, value):
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        relay.Tunnel(receive, factory, **{name: value})


@pytest.mark.parametrize("name", ["timeout", "connect_timeout", "idle_timeout"])
def test_a_limit_of_zero(receive, name):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        relay.Tunnel(receive, factory, **{name: 0})


def test_what_is_allowed_is_said(receive):
    with pytest.raises(ValueError, match="None"):
        relay.Tunnel(receive, factory, timeout=-5)


@pytest.mark.parametrize("value", [-1, math.nan, "soon"], ids=repr)
def test_a_drain_that_is_no_time(value):
    with relay.Tunnel(FakeListener(), factory) as tunnel:
        with pytest.raises((TypeError, ValueError), match="drain"):
            tunnel.close(drain=value)
        assert tunnel.stats().active == 0


def test_an_unknown_keyword(receive):
    with pytest.raises(TypeError, match="time_out"):
        relay.Tunnel(receive, factory, time_out=3)


def test_limits_beyond_the_fourth_are_keywords_only(receive):
    with pytest.raises(TypeError, match="positional"):
        relay.Tunnel(receive, factory, -1, 60.0, 30.0)


@pytest.mark.parametrize(
    "limits",
    [
        {"nconnect": -1, "timeout": None, "connect_timeout": None, "idle_timeout": None, "linger": None},
        {"nconnect": 1, "timeout": 1, "connect_timeout": 0.5, "idle_timeout": 1, "linger": 0, "name": "one"},
        {"timeout": 1e9, "linger": 0.0},
    ],
)
def test_what_is_allowed_is_taken(limits):
    with relay.Tunnel(FakeListener(), factory, **limits) as tunnel:
        assert (limits.get("name") or "tunnel") in repr(tunnel).lower()
