"""Letting clients in: what is refused, batches, and what happens when it fails."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import threading
from types import ModuleType
from typing import Any

import pytest
from helpers import WAIT, Server, ending, receive_exactly, wait_until

import relay
from relay.engine import acceptor, changes
from relay.engine.acceptor import check_listener
from relay.engine.admission import SpareDescriptor
from relay.eventloop.poller import IN


def test_the_argument_is_named_as_the_caller_knows_it() -> None:
    with socket.socket() as idle, pytest.raises(ValueError, match="listen: the socket does not listen"):
        check_listener(idle, "listen")
    with pytest.raises(TypeError, match="receive: .* got int"):
        check_listener(7)


def test_a_socket_is_no_tls_socket_while_another_thread_imports_ssl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ssl", ModuleType("ssl"))  # as it is in the first moment
    with socket.create_server(("127.0.0.1", 0)) as listening:
        check_listener(listening)
        with relay.Stream(socket.create_connection(listening.getsockname())):
            pass


class Flaky(socket.socket):
    """A listening socket whose accept fails as often as the test says."""

    failures: list[OSError]

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            raise self.failures.pop()
        return super().accept()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EPERM])
def test_accepting_goes_on_after_a_failure_with_one_warning(
    echo_server: Server, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(acceptor, "_BACKOFF", (0.01, 0.02))
    listening = Flaky()
    listening.failures = [OSError(number, "no") for _ in range(3)]
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    with (
        caplog.at_level(logging.WARNING, "relay"),
        relay.Tunnel(listening, echo_server.factory()) as tunnel,
        socket.create_connection(tunnel.address, timeout=WAIT) as client,
    ):
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"
    assert [record.getMessage() for record in caplog.records if "cannot accept" in record.getMessage()] != []
    assert len(caplog.records) == 1


@pytest.mark.parametrize("has_descriptor", [True, False])
def test_the_backlog_of_a_listener_that_fails_is_tried_once(
    echo_server: Server, has_descriptor: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clients still wait there; another try would end more half-open connections for nothing."""
    listening = Flaky()
    listening.failures = []
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    with relay.Tunnel(listening, echo_server.factory()) as tunnel:
        tunnel.pause()
        with socket.create_connection(tunnel.address, timeout=WAIT):
            tries = []
            monkeypatch.setattr(tunnel._relay, "make_room", tries.append)  # type: ignore[attr-defined]
            if has_descriptor:
                listening.failures = [OSError(errno.EMFILE, "no") for _ in range(3)]
            else:
                monkeypatch.setattr(tunnel._relay, "has_spare_fd", lambda: False)  # type: ignore[attr-defined]
            changes.in_thread(tunnel, _take_backlog)
            assert len(tries) == 1
            monkeypatch.undo()


def _take_backlog(thread: Any, now: float) -> None:
    made = thread._acceptor
    made.listening = True  # without the loop, which would accept, too
    made.take_backlog(now)
    made.listening = False


def test_a_client_that_is_gone_before_it_is_accepted_is_nothing(
    echo_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    listening = Flaky()
    listening.failures = [ConnectionAbortedError(errno.ECONNABORTED, "gone")]
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    with (
        relay.Tunnel(listening, echo_server.factory()) as tunnel,
        socket.create_connection(tunnel.address, timeout=WAIT) as client,
    ):
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"
    assert caplog.records == []


def test_a_storm_is_accepted_in_growing_batches(echo_server: Server) -> None:
    with relay.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel:
        tunnel.pause()
        clients = [socket.create_connection(tunnel.address, timeout=WAIT) for _ in range(200)]
        tunnel.resume()
        wait_until(lambda: tunnel.stats().accepted == 200)
        assert tunnel._relay._acceptor._batch > 1  # type: ignore[attr-defined]
        for client in clients:
            client.close()


def test_a_listening_socket_that_somebody_else_has_closed_costs_no_connection(
    echo_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    receive = relay.listen(":0")
    with (
        relay.Tunnel(receive, echo_server.factory()) as tunnel,
        socket.create_connection(tunnel.address, timeout=WAIT) as client,
    ):
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"
        number = receive.fileno()
        receive.close()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert number in (ours.fileno(), theirs.fileno()), "the number was to be somebody else's"
            seen = threading.Event()
            tunnel._relay.loop.call(lambda: tunnel._relay.loop.watch(number, IN, lambda event, now: seen.set()))
            tunnel.pause()
            tunnel.resume()
            (theirs if ours.fileno() == number else ours).send(b"x")
            assert seen.wait(WAIT), "another socket was taken for the listening one"
            tunnel._relay.run_in_thread(lambda: tunnel._relay.loop.forget(number))
        client.sendall(b"y")
        assert receive_exactly(client, 1) == b"y"
    assert "closed by other code" in caplog.text


def test_a_tunnel_without_clients_holds_three_descriptors(echo_server: Server) -> None:
    """Its listener, its poller and its eventfd: thousands of tunnels share the limit of one process."""

    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = held()
    with relay.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel:
        tunnel.pause()
        tunnel.resume()
        assert held() == before + 3
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
            assert tunnel._relay._spare._descriptor is not None


def test_a_client_is_not_accepted_before_there_is_a_spare_descriptor(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "_BACKOFF", (0.01, 0.02))
    asked: list[int] = []

    def is_available(spare: SpareDescriptor) -> bool:
        asked.append(tunnel.stats().accepted)
        return len(asked) > 3

    monkeypatch.setattr(SpareDescriptor, "is_available", is_available)
    with relay.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel:
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
    assert asked[:4] == [0, 0, 0, 0]


class Deliverer:
    """A listener that pushes its streams, in a thread of its own or in the loop's."""

    pushes_streams = True

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.taker: Any = None
        self.loop: Any = None
        self.waiting: list[relay.Stream] = []
        self.over = threading.Event()

    def deliver(self, taker: Any, loop: Any = None) -> None:
        self.calls.append("deliver" if taker is not None else "keep")
        self.taker, self.loop = taker, loop
        while taker is not None and self.waiting:
            taker(self.waiting.pop(0), "somebody")

    def bring(self) -> socket.socket:
        """A client; returns its end."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(WAIT)
        stream = relay.Stream(ours)
        if self.taker is not None:
            self.taker(stream, "somebody")
        else:
            self.waiting.append(stream)
        return theirs

    def accept(self) -> tuple[relay.Stream, str]:
        self.calls.append("accept")
        self.over.wait()
        raise OSError(errno.EBADF, "closed")

    def accept_any(self) -> tuple[relay.Stream, str]:
        return self.accept()

    def join(self, timeout: float) -> None:
        self.calls.append("join")

    def close(self) -> None:
        self.calls.append("close")
        self.over.set()


def test_a_listener_that_delivers_needs_no_thread(echo_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = Deliverer()
    with relay.Tunnel(receive, echo_server.factory(), name="t") as tunnel:
        wait_until(lambda: receive.taker is not None)
        assert receive.loop is tunnel._relay.loop
        assert "t accept" not in [thread.name for thread in threading.enumerate()]
        with receive.bring() as client:
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
        threads: list[threading.Thread] = []
        offered = tunnel._relay.offered
        seen = lambda *what: (threads.append(threading.current_thread()), offered(*what))  # noqa: E731
        monkeypatch.setattr(tunnel._relay, "offered", seen)
        receive.bring().close()
        brought: list[socket.socket] = []
        tunnel._relay.loop.call(lambda: brought.append(receive.bring()))
        wait_until(lambda: brought)
        with brought[0] as client:
            client.sendall(b"y")
            assert receive_exactly(client, 1) == b"y"
        assert {thread.name for thread in threads} == {"t"}
        assert {record.peer for record in tunnel.connections() + tunnel.recent()} == {"somebody"}
    assert receive.calls == ["deliver", "keep", "close", "join"]


def test_a_paused_tunnel_has_nobody_delivered(echo_server: Server) -> None:
    receive = Deliverer()
    with relay.Tunnel(receive, echo_server.factory()) as tunnel:
        tunnel.pause()
        assert receive.taker is None
        with receive.bring() as client:
            assert tunnel.stats().accepted == 0
            tunnel.resume()
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"


def test_whoever_is_delivered_too_late_is_ended(echo_server: Server) -> None:
    receive = Deliverer()
    tunnel = relay.Tunnel(receive, echo_server.factory())
    wait_until(lambda: receive.taker is not None)
    take = receive.taker
    tunnel.pause()
    receive.taker = take  # it was on its way
    with receive.bring() as client:
        assert ending(client) == "reset"
    tunnel.close()
    receive.taker = take
    with receive.bring() as client:
        assert ending(client) == "reset"


def test_with_a_limit_of_connections_each_is_asked_for(echo_server: Server) -> None:
    receive = Deliverer()
    with relay.Tunnel(receive, echo_server.factory(), nconnect=5):
        wait_until(lambda: receive.calls == ["accept"])
    assert receive.calls == ["accept", "close", "join"]


def test_a_listener_of_somebody_elses_is_not_joined(echo_server: Server) -> None:
    receive = Deliverer()
    receive.pushes_streams = False

    class Plain:
        accept = receive.accept
        close = receive.close
        join = receive.join

    with relay.Tunnel(Plain(), echo_server.factory()):
        pass
    assert "join" not in receive.calls
