"""Calls of factories, and the names of their errors; the promises test how they are called."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from helpers import WAIT, Relayed, Server, ended, exchange, fate_of_client, receive_exactly, wait_until

import relay
from relay.streams.dialer import Dialer


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
        for accepted in (0, 8):
            clients = [socket.create_connection(tunnel.address) for _ in range(8)]
            for _ in range(3):
                assert inside.acquire(timeout=WAIT)
            assert tunnel.stats().accepted == accepted + 3
            assert not inside.acquire(blocking=False)
            go.set()
            for client in clients:
                client.sendall(b"x")
                assert receive_exactly(client, 1) == b"x"
                client.close()
            assert tunnel.stats().accepted == accepted + 8
            for _ in range(5):
                assert inside.acquire(timeout=WAIT)
            go.clear()


def test_a_proxys_client_is_given_its_request_and_its_name(echo_server: Server) -> None:
    seen: dict[str, Any] = {}

    def factory(destination: Any, identity: Any, deadline: Any) -> socket.socket:
        seen.update(destination=str(destination), login=identity.login, deadline=deadline)
        return socket.create_connection(echo_server.address)

    receive = relay.socks_listen("127.0.0.1", 0, user="alice", password="secret")
    with relay.Tunnel(receive, factory, timeout=None, connect_timeout=None) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.sendall(b"\5\1\2" + b"\1\5alice\6secret" + b"\5\1\0\3\2db\x15\x38")
            assert receive_exactly(client, 14) == b"\5\2\1\0" + b"\5\0\0\1" + bytes(6)
            assert tunnel.connections()[0].target == "db:5432"
    assert seen == {"destination": "db:5432", "login": "alice", "deadline": None}


@pytest.mark.parametrize(("source", "comes_from"), [("127.0.0.2", "127.0.0.2"), ("peer", "127.0.0.3")])
def test_a_stream_may_come_from_another_address(relayed: Callable[..., Relayed], source: str, comes_from: str) -> None:
    made = relayed(source=source)
    with socket.socket() as client:
        client.settimeout(WAIT)
        client.bind(("127.0.0.3", 0))
        client.connect(made.tunnel.address)
        far = made.accept()
        exchange(client, far)
        assert far.getpeername()[0] == comes_from
        assert made.tunnel.connections()[0].target == "{}:{}".format(*made.target.getsockname())


def test_a_source_that_this_machine_does_not_have_is_the_reason(
    relayed: Callable[..., Relayed], caplog: pytest.LogCaptureFixture
) -> None:
    made = relayed(source="192.0.2.1")
    assert fate_of_client(made.tunnel.address) == "reset"
    assert ended(made.tunnel) == ["unreachable"]
    where = "{}:{}".format(*made.target.getsockname())
    assert f"{where}: source 192.0.2.1: this machine has no such address" in caplog.text


def test_a_call_for_a_warm_stream_keeps_no_client_out(relayed: Callable[..., Relayed]) -> None:
    calls, go = [], threading.Event()

    def factory() -> socket.socket:
        calls.append(None)
        if len(calls) == 1:
            assert go.wait(WAIT)
        return socket.create_connection(made.target.getsockname(), WAIT)

    made = relayed(factory, nconnect=1, warm=1)
    wait_until(lambda: calls)
    client, far = made.connect()
    exchange(client, far)
    go.set()
    made.accept()
    wait_until(lambda: made.tunnel.metrics().warm.ready == 1)  # type: ignore[union-attr]


class Asked(Dialer):
    """A dialer that notes which of its kinds is asked for a stream, and never has one."""

    last_error = relay.ConnectError("the server\ndoes not answer")

    def __init__(self, kinds: list[str], kind: str = "as it is") -> None:
        super().__init__("db:5432")
        self.kinds, self.kind = kinds, kind

    def confirming(self) -> Dialer:
        return Asked(self.kinds, "confirming")

    def on(self, home: Any) -> Dialer:
        self.kinds.append(type(home).__name__)
        return self

    def dial(self, deadline: float | None, done: Any, **options: Any) -> Any:
        self.kinds.append(self.kind)
        return lambda: None


class AskedFor(Asked):
    """One that has another one for each request."""

    def select(self, request: Any) -> Dialer:
        return self if request is None else Asked(self.kinds)


SOCKS_REQUEST = b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1\0\x50"


@pytest.mark.parametrize(("request_", "warm"), [(b"", 0), (SOCKS_REQUEST, 0), (b"", 1)])
def test_only_a_reply_and_a_stream_that_is_kept_need_a_target_that_has_confirmed(request_: bytes, warm: int) -> None:
    kinds: list[str] = []
    receive = relay.socks_listen("127.0.0.1", 0) if request_ else relay.listen(":0")
    dialer = AskedFor(kinds) if request_ else Asked(kinds)
    with relay.Tunnel(receive, dialer, warm=warm) as tunnel:
        with contextlib.nullcontext() if warm else socket.create_connection(tunnel.address, WAIT) as client:
            if client is not None:
                client.sendall(request_)
            wait_until(lambda: kinds[-1:] != ["Workspace"])
    # Each is at home in the tunnel, whose loop and pipes it shares.
    assert kinds == ["Workspace"] * (2 if request_ else 1) + ["confirming" if request_ or warm else "as it is"]


def test_the_reason_why_there_was_no_stream_in_time_is_in_the_log_if_it_is_known(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with relay.Tunnel(relay.listen(":0"), Asked([]), connect_timeout=0.05, name="it") as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel) == ["connect_timeout"]
        peer = "{}:{}".format(*tunnel.recent()[0].peer)
    text = f"it: db:5432: not connected in time: the server\ndoes not answer (client {peer})"
    assert caplog.record_tuples == [("relay", logging.WARNING, text)]


@pytest.mark.parametrize("error", [relay.ConnectError("x" * 5000, reason="unreachable"), ValueError("x" * 5000)])
def test_a_long_error_is_cut_in_the_log(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def factory() -> socket.socket:
        raise error

    with relay.Tunnel(relay.listen(":0"), factory) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        wait_until(lambda: caplog.messages)
    assert 2000 <= len(caplog.messages[0]) < 2100


def test_what_closes_a_stream_and_fails_is_in_the_log(
    relayed: Callable[..., Relayed], caplog: pytest.LogCaptureFixture
) -> None:
    def on_close() -> None:
        raise SystemExit

    def factory() -> relay.Stream:
        return relay.Stream(socket.create_connection(made.target.getsockname(), WAIT), on_close=on_close)

    made = relayed(factory, name="it")
    for count in (1, 2):  # its thread goes on
        client, far = made.connect()
        exchange(client, far)
        far.close()
        client.close()
        wait_until(lambda: caplog.messages == ["it: closing a stream failed"] * count)  # noqa: B023
    assert "SystemExit" in caplog.text


class WithClose:
    """A factory that has a ``close``, of a kind."""

    def __init__(self, close: Any) -> None:
        self.close = close

    def __call__(self) -> None:
        """Make no stream."""


def test_a_factory_is_closed_if_it_can_be(caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []

    class Class:
        def close(self) -> None:
            closed.append("of a class")

    for factory in (WithClose(lambda: closed.append("one")), WithClose("no function"), lambda: None, Class):
        relay.Tunnel(relay.listen(":0"), factory).close()  # type: ignore[arg-type]
    assert (closed, caplog.messages) == (["one"], [])
    relay.Tunnel(relay.listen(":0"), WithClose(lambda: 1 / 0), name="it").close()  # type: ignore[arg-type]
    assert caplog.messages == ["it: closing the factory failed"]
    assert "ZeroDivisionError" in caplog.text
