"""The stream value, resets, and the mark of a factory that never blocks."""

from __future__ import annotations

import socket
import ssl

import pytest
from helpers import WAIT

import relay
from relay.eventloop.sockets import keep_alive, reset
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
