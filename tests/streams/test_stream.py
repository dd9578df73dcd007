"""The stream value, its resets and its path, and the mark of a factory that never blocks."""

from __future__ import annotations

import socket
import ssl

import pytest
from helpers import WAIT

import relay
from relay.addresses.parse import parse_hops
from relay.eventloop.sockets import keep_alive, reset
from relay.streams.stream import HANDSHAKE, WEBSOCKET, StreamPath, hop_times
from relay.testing import pair


def test_a_stream_closes_once() -> None:
    closed = []
    ours, theirs = pair()
    with theirs:
        with relay.Stream(ours, target="db:5432", on_close=lambda: closed.append(1)) as stream:
            assert stream.fileno() == ours.fileno()
            assert "db:5432" in repr(stream)
        stream.close()
        assert closed == [1]
        assert stream.fileno() == -1


def test_only_a_socket_makes_a_stream() -> None:
    with pytest.raises(TypeError, match=r"socket: expected a plain socket\.socket, got str"):
        relay.Stream("nonsense")  # type: ignore[arg-type]


@pytest.mark.parametrize("how", [reset, lambda ours: relay.Stream(ours).reset()])
def test_a_reset_is_a_reset(how) -> None:  # type: ignore[no-untyped-def]
    ours, theirs = pair(socket.AF_INET)
    with theirs:
        theirs.settimeout(WAIT)
        how(ours)
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)


def test_resetting_a_closed_socket_is_nothing() -> None:
    ours, theirs = pair()
    theirs.close()
    ours.close()
    reset(ours)


def test_vanished_peers_are_noticed_after_90_seconds() -> None:
    ours, theirs = pair(socket.AF_INET)
    with ours, theirs:
        keep_alive(ours)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
            assert ours.getsockopt(socket.IPPROTO_TCP, option) == value
    ours, theirs = pair(socket.AF_UNIX)
    with ours, theirs:
        keep_alive(ours)


def test_a_factory_can_be_marked() -> None:
    @relay.nonblocking
    def factory() -> None: ...

    assert factory.nonblocking is True  # type: ignore[attr-defined]

    class Owner:
        def factory(self) -> None: ...

    with pytest.raises(TypeError, match="cannot be marked"):
        relay.nonblocking(Owner().factory)


def test_an_ssl_socket_is_not_a_plain_one() -> None:
    ours, theirs = pair()
    with (
        theirs,
        ssl.create_default_context().wrap_socket(
            ours, server_hostname="localhost", do_handshake_on_connect=False
        ) as tls,
    ):
        with pytest.raises(TypeError, match="SSLSocket"):
            relay.Stream(tls)


def test_a_file_of_the_socket_does_not_keep_it_open() -> None:
    ours, theirs = pair(socket.AF_INET)
    with theirs, ours.makefile("rb"):
        theirs.settimeout(WAIT)
        reset(ours)
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)


def route(*hops):
    return parse_hops(list(hops), "db:5432")


@pytest.mark.parametrize(
    ("hops", "steps", "labels"),
    [
        ([], [1], ["1:target"]),
        ([], [1, HANDSHAKE], ["1:target", "1:tls"]),
        ([], [1, WEBSOCKET], ["1:target", "1:websocket"]),
        (["ssh://a"], [2], ["2:target"]),
        (["ssh://a"], [1, 2, HANDSHAKE], ["1:ssh", "2:target", "2:tls"]),
        (["ssh://a", "socks5://b:1", "http://c:1"], [1, 2, 3, 4], ["1:ssh", "2:socks5", "3:http", "4:target"]),
        (["i2p:", "exec:nc %h %p"], [1, 2, 3], ["1:i2p", "2:exec", "3:target"]),
        ([f"socks5://h{number}:1" for number in range(12)], [9, 10, 12, 13], ["9:socks5", "10:socks5", "10:target"]),
    ],
)
def test_each_step_has_a_label(hops, steps, labels):
    path = StreamPath(tuple((number, 0.5) for number in steps))
    assert [label for label, _ in hop_times(path, route(*hops))] == labels


def test_steps_to_the_same_are_added_up():
    """A session that the address of the target stands for is no hop of the route."""
    path = StreamPath(((1, 0.5),), "i2p:").extended(1, 0.25)
    assert hop_times(path, ()) == (("1:target", 0.75),)
    assert path.carrier == "i2p:"
