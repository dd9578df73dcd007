"""Calls of factories, and the names of their errors; the promises test how they are called."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from helpers import WAIT, Server, receive_exactly, wait_until

import relay
from relay.engine.attempt import keywords_of
from relay.engine.connector import reason_of


def takes_all(*, peer: Any, deadline: Any, cancel: Any) -> None: ...


def takes_any(**kwargs: Any) -> None: ...


class Callee:
    def __call__(self, deadline: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        (takes_all, {"peer", "deadline", "cancel"}),
        (takes_any, set()),
        (lambda peer=None: None, {"peer"}),
        (lambda: None, set()),
        (Callee(), {"deadline"}),
        (functools.partial(takes_all, peer=1), {"peer", "deadline", "cancel"}),
        (int, set()),
        (dict.get, set()),
    ],
)
def test_a_factory_gets_the_keywords_that_it_names(factory: Callable[..., Any], names: set[str]) -> None:
    assert keywords_of(factory) == names


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(), "refused"),
        (TimeoutError(), "connect_timeout"),
        (socket.gaierror(-2, "Name or service not known"), "unreachable"),
        (FileNotFoundError(), "unreachable"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "unreachable"),
        (OSError(errno.EACCES, "Permission denied"), "factory_error"),
        (relay.ConnectError("not you", reason="denied"), "denied"),
        (relay.CarrierError("the connection was lost"), "carrier_lost"),
        (relay.RelayError("something"), "factory_error"),
        (ValueError(), "factory_error"),
        (SystemExit(), "factory_error"),
    ],
)
def test_what_a_factory_raises_has_its_word(error: BaseException, reason: str) -> None:
    assert reason_of(error) == reason


def test_a_factory_that_names_everything_is_given_everything(echo_server: Server) -> None:
    seen: dict[str, Any] = {}

    def factory(*, peer: Any, deadline: float, cancel: Any) -> socket.socket:
        seen.update(peer=peer, deadline=deadline, set=cancel.is_set(), descriptor=cancel.fileno())
        return socket.create_connection(echo_server.address)

    with (
        relay.Tunnel(relay.listen(":0"), factory, connect_timeout=5) as tunnel,
        socket.create_connection(tunnel.address) as client,
    ):
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"
        assert seen["peer"] == client.getsockname()
        assert seen["set"] is False
        assert seen["deadline"] > 0


@pytest.mark.parametrize(
    ("error", "level", "told", "traced"),
    [
        (relay.RelayError("no such file"), "WARNING", "no such file", False),
        (PermissionError(errno.EACCES, "not allowed"), "WARNING", "[Errno 13] not allowed", False),
        (relay.RelayError("no such file"), "DEBUG", "no such file", True),
        (ZeroDivisionError("a bug"), "WARNING", "ZeroDivisionError: a bug", True),
    ],
)
def test_what_a_factory_raises_is_told_in_one_line_and_traced_where_it_helps(
    error: Exception, level: str, told: str, traced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def factory() -> socket.socket:
        raise error

    caplog.set_level(level, "relay")
    with relay.Tunnel(relay.listen(":0"), factory, name="mine") as tunnel:
        with socket.socket() as client:
            client.bind(("127.0.0.1", 0))
            peer = "{}:{}".format(*client.getsockname())
            with contextlib.suppress(ConnectionResetError):  # it may come before connect() is over
                client.connect(tunnel.address)
            wait_until(lambda: tunnel.stats().failed == {"factory_error": 1})
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == f"mine: the factory failed for the client {peer}: {told}"
    assert bool(record.exc_info) is traced


def test_calls_beyond_the_limit_wait_in_the_backlog(echo_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.engine.relay_thread.MOST_CALLS", 3)
    go, inside = threading.Event(), threading.Semaphore(0)

    def factory() -> socket.socket:
        inside.release()
        assert go.wait(WAIT)
        return socket.create_connection(echo_server.address)

    with relay.Tunnel(relay.listen(":0"), factory) as tunnel:
        clients = [socket.create_connection(tunnel.address) for _ in range(8)]
        for _ in range(3):
            assert inside.acquire(timeout=WAIT)
        assert tunnel.stats().accepted == 3
        go.set()
        for client in clients:
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
            client.close()
        assert tunnel.stats().accepted == 8


def test_what_is_done_after_a_stream_runs_once_on_a_thread_that_may_block(echo_server: Server) -> None:
    closed: list[str] = []
    may_go = threading.Event()

    def on_close() -> None:
        may_go.wait(WAIT)
        closed.append(threading.current_thread().name)

    @relay.nonblocking
    def factory() -> relay.Stream:
        made = socket.create_connection(echo_server.address)
        return relay.Stream(made, target="the echo", on_close=on_close)

    with relay.Tunnel(relay.listen(":0"), factory, name="mine") as tunnel:
        with socket.create_connection(tunnel.address) as client:
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
            assert tunnel.connections()[0].target == "the echo"
        wait_until(lambda: tunnel.stats().active == 0)
        with socket.create_connection(tunnel.address) as client:  # the relay thread is not held up
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
        may_go.set()
        wait_until(lambda: len(closed) == 2)
    assert all("connector" in name for name in closed)
