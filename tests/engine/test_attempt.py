"""Attempts: how they are given up, and what factories hand over that is not what it seems."""

from __future__ import annotations

import select
import socket

import pytest
from helpers import WAIT, Server, ending, fate_of_client, receive_exactly, wait_until

import relay
from relay.streams.cancellation import Cancellation


@pytest.mark.parametrize("asked_first", [True, False])
def test_a_cancellation_can_be_waited_for(asked_first: bool) -> None:
    cancel = Cancellation()
    if asked_first:
        assert not select.select([cancel], [], [], 0)[0]
    assert not cancel.is_set()
    cancel.set()
    cancel.set()
    assert cancel.is_set()
    assert select.select([cancel], [], [], 5)[0]
    cancel.close()
    cancel.set()


def connected(server: Server) -> socket.socket:
    return socket.create_connection(server.address)


def test_a_socket_that_its_maker_closes_ends_its_connection_and_gives_the_slot_back(echo_server: Server) -> None:
    made: list[socket.socket] = []

    def factory() -> socket.socket:
        made.append(connected(echo_server))
        return made[-1]

    with relay.Tunnel(relay.listen(":0"), factory, nconnect=1) as tunnel:
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
            made[0].close()
            client.sendall(b"y")
            assert ending(client) == "reset"
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            client.sendall(b"z")
            assert receive_exactly(client, 1) == b"z"
        assert tunnel.recent()[0].reason == "target_reset"


def test_a_socket_that_is_handed_over_twice_fails_the_second_time(
    echo_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    one = connected(echo_server)
    with relay.Tunnel(relay.listen(":0"), lambda: one) as tunnel:
        first = socket.create_connection(tunnel.address, timeout=WAIT)
        with first:
            first.sendall(b"x")
            assert receive_exactly(first, 1) == b"x"
            assert fate_of_client(tunnel.address) == "reset"
            assert ended_with(tunnel, "factory_error")
        wait_until(lambda: tunnel.stats().active == 0)
    assert "a bug in relay" not in caplog.text


def ended_with(tunnel: relay.Tunnel, reason: str) -> bool:
    wait_until(tunnel.recent)
    return tunnel.recent()[0].reason == reason


def test_a_socket_that_listens_is_refused_at_once() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        relay.Tunnel(relay.listen(":0"), listening.dup) as tunnel,
    ):
        assert fate_of_client(tunnel.address) == "reset"
        assert ended_with(tunnel, "factory_error")


def test_a_failure_that_raises_is_a_failure(echo_server: Server) -> None:
    def failure() -> None:
        raise ValueError("a bug in it")

    with (
        relay.Tunnel(relay.listen(":0"), lambda: relay.Stream(connected(echo_server), failure=failure)) as tunnel,
        socket.create_connection(tunnel.address, timeout=WAIT) as client,
    ):
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"
        client.shutdown(socket.SHUT_WR)
        assert ending(client) == "reset"
        assert ended_with(tunnel, "target_reset")
