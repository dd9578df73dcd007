"""Letting clients in: what is refused, batches, and what happens when it fails."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from typing import Any

import pytest
from helpers import Server, receive_exactly, wait_until

import relay
from relay import acceptor
from relay.acceptor import check_listener
from relay.poller import IN


def test_the_argument_is_named_as_the_caller_knows_it() -> None:
    with socket.socket() as idle, pytest.raises(ValueError, match="listen: the socket does not listen"):
        check_listener(idle, "listen")
    with pytest.raises(TypeError, match="receive: .* not int"):
        check_listener(7)


class Flaky(socket.socket):
    """A listening socket whose accept fails as often as it is told."""

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
        socket.create_connection(tunnel.address, timeout=10) as client,
    ):
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"
    assert [record.getMessage() for record in caplog.records if "cannot accept" in record.getMessage()] != []
    assert len(caplog.records) == 1


def test_a_client_that_is_gone_before_it_is_accepted_is_nothing(
    echo_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    listening = Flaky()
    listening.failures = [ConnectionAbortedError(errno.ECONNABORTED, "gone")]
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    with (
        relay.Tunnel(listening, echo_server.factory()) as tunnel,
        socket.create_connection(tunnel.address, timeout=10) as client,
    ):
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"
    assert caplog.records == []


def test_a_storm_is_accepted_in_growing_batches(echo_server: Server) -> None:
    with relay.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel:
        tunnel.pause()
        clients = [socket.create_connection(tunnel.address, timeout=10) for _ in range(200)]
        tunnel.resume()
        wait_until(lambda: tunnel.stats().accepted == 200)
        assert tunnel._acceptor._batch > 1  # type: ignore[attr-defined]
        for client in clients:
            client.close()


def test_a_listening_socket_that_somebody_else_has_closed_costs_no_connection(
    echo_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    receive = relay.listen(":0")
    with (
        relay.Tunnel(receive, echo_server.factory()) as tunnel,
        socket.create_connection(tunnel.address, timeout=10) as client,
    ):
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"
        number = receive.fileno()
        receive.close()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert number in (ours.fileno(), theirs.fileno()), "the number was to be somebody else's"
            seen = threading.Event()
            tunnel.loop.call(lambda: tunnel.loop.watch(number, IN, lambda event, now: seen.set()))
            tunnel.pause()
            tunnel.resume()
            (theirs if ours.fileno() == number else ours).send(b"x")
            assert seen.wait(10), "another socket was taken for the listening one"
            tunnel._in_loop(lambda: tunnel.loop.forget(number))
        client.sendall(b"y")
        assert receive_exactly(client, 1) == b"y"
    assert "closed by somebody else" in caplog.text
