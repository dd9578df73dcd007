"""``relay.eventloop.sockets``: connecting, and errors that say what to do."""

from __future__ import annotations

import errno
import socket
import threading
import time

import pytest
from helpers import WAIT

from relay import ConnectError
from relay.eventloop.sockets import Endpoint, connect_blocking, connect_error, open_socket


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
