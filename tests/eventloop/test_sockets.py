"""``relay.eventloop.sockets``: connecting, and errors that say what to do."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time

import pytest
from helpers import WAIT

from relay import ConnectError
from relay.eventloop.sockets import Endpoint, connect_blocking, connect_error, is_exposed, open_socket


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "refused"),
        (TimeoutError(), "connect_timeout"),
        (OSError(errno.ETIMEDOUT, "timed out"), "connect_timeout"),
        (OSError(errno.EHOSTUNREACH, "no route"), "unreachable"),
        (None, "unreachable"),
        (ConnectError("already said", reason="denied"), "denied"),
    ],
)
def test_errors_have_their_word(error: OSError | None, reason: str) -> None:
    assert connect_error("db:1", error).reason == reason


def test_a_full_unix_backlog_is_waited_for(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(path)
        busy.listen(0)
        endpoint = Endpoint(socket.AF_UNIX, path)
        first, status = open_socket(endpoint, socket.socket)
        assert status == 0
        second, status = open_socket(endpoint, socket.socket)
        assert status == errno.EAGAIN
        assert connect_blocking(second, endpoint, time.monotonic() + 0.05) == errno.ETIMEDOUT
        second.close()
        third, _ = open_socket(endpoint, socket.socket)
        threading.Timer(0.05, lambda: busy.accept()[0].close()).start()
        assert connect_blocking(third, endpoint, time.monotonic() + WAIT) == 0
        assert third.getblocking() is False
        first.close()
        third.close()


def test_a_connection_comes_from_its_source_and_shares_its_port(serve) -> None:  # type: ignore[no-untyped-def]
    server = serve(lambda connection: None)
    source = ("127.45.6.7", 0)
    made, status = open_socket(Endpoint(socket.AF_INET, server.address, source), socket.socket)
    with made:
        assert status == 0
        assert made.getsockname()[0] == "127.45.6.7"
        if sys.platform == "linux":  # IP_BIND_ADDRESS_NO_PORT: the connect has chosen the port, not the bind
            assert made.getsockopt(socket.IPPROTO_IP, 24) == 1


def test_an_ipv6_source() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        endpoint = Endpoint(socket.AF_INET6, server.getsockname(), ("::1", 0, 0, 0))
        made, status = open_socket(endpoint, socket.socket)
        with made:
            assert status == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EADDRNOTAVAIL, "this machine has no such address; set source to one that it has"),
        (errno.EADDRINUSE, "all its ports are in use; wait until connections end"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_a_source_that_cannot_be_bound(number: int, text: str) -> None:
    class Rejecting(socket.socket):
        def bind(self, address: object) -> None:
            raise OSError(number, os.strerror(number))

    with pytest.raises(ConnectError) as raised:
        open_socket(Endpoint(socket.AF_INET, ("127.0.0.1", 9), ("192.0.2.1", 0)), Rejecting)
    assert str(raised.value) == f"127.0.0.1:9: source 192.0.2.1: {text}"
    assert raised.value.reason == "unreachable"


@pytest.mark.parametrize("number", [errno.EADDRNOTAVAIL, errno.EADDRINUSE])
def test_a_source_whose_ports_are_all_in_use(number: int) -> None:
    class Full(socket.socket):
        def connect_ex(self, address: object) -> int:
            return number

    text = r"^127\.0\.0\.1:9: source 127\.9\.9\.9: all its ports are in use for this target; wait until"
    with pytest.raises(ConnectError, match=text):
        open_socket(Endpoint(socket.AF_INET, ("127.0.0.1", 9), ("127.9.9.9", 0)), Full)


def test_without_a_source_such_an_error_stays_what_it_is() -> None:
    class Full(socket.socket):
        def connect_ex(self, address: object) -> int:
            return errno.EADDRNOTAVAIL

    made, status = open_socket(Endpoint(socket.AF_INET, ("127.0.0.1", 9)), Full)
    made.close()
    assert status == errno.EADDRNOTAVAIL


@pytest.mark.parametrize(
    ("host", "exposed"), [("127.0.0.1", False), ("127.0.0.9", False), ("0.0.0.0", True), ("::1", False), ("::", True)]
)
def test_a_listener_off_the_loopback_is_exposed(host: str, exposed: bool) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        assert is_exposed(listening) is exposed
    assert is_exposed(listening), "its address is not known any more"


def test_a_unix_socket_is_not_exposed() -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        assert not is_exposed(listening)
