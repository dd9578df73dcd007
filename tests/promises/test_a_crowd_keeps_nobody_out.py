"""Clients that have not been let in yet, and names that nobody resolves, keep no other client out."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from helpers import WAIT, exchange, receive_exactly, wait_until

import relay
from relay import lookups

HELLO = b"\5\1\0"
SERVED = b"\5\0\5\0\0\1" + bytes(6)


def request(host: str, port: int) -> bytes:
    return HELLO + b"\5\1\0\3" + bytes([len(host)]) + host.encode() + port.to_bytes(2, "big")


@pytest.fixture
def crowd():
    """Makes clients that stay: ``crowd(address, text)``."""
    with contextlib.ExitStack() as stack:

        def make(address, text=b""):
            client = stack.enter_context(socket.create_connection(address, WAIT))
            client.sendall(text)
            return client

        yield make


def test_names_that_nobody_resolves(crowd, echo_server, monkeypatch):
    monkeypatch.setattr(lookups, "_MOST", 4)
    monkeypatch.setattr(lookups, "_SHARE", 4)
    monkeypatch.setattr(lookups, "_WAITING", 8)
    monkeypatch.setattr("relay.tunnel.MOST_CALLS", 4)
    go, resolve = threading.Event(), socket.getaddrinfo

    def slow(host, *args, **options):
        if host.endswith(".invalid"):
            go.wait(4 * WAIT)
        return resolve("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    port = echo_server.address[1]
    with relay.Tunnel(relay.socks_listen("127.0.0.1", 0), relay.dynamic(), connect_timeout=4 * WAIT) as tunnel:
        try:
            waiting = [crowd(tunnel.address, request(f"name{number}.invalid", port)) for number in range(20)]
            proper = crowd(tunnel.address, HELLO + b"\5\1\0\1\x7f\0\0\1" + port.to_bytes(2, "big"))
            assert receive_exactly(proper, 12) == SERVED
            exchange(proper, proper, b"x")
            wait_until(lambda: tunnel.stats().failed == {"overloaded": 8})
            threads = [one for one in threading.enumerate() if "connector" in one.name]
            assert len(threads) <= 5
        finally:
            go.set()
        answers = [receive_exactly(client, 12) for client in waiting]
        assert answers.count(SERVED) == 12
        assert answers.count(b"\5\0\5\1\0\1" + bytes(6)) == 8
