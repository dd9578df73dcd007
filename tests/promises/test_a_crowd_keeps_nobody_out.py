"""Clients that have not been let in yet, and names that do not resolve, keep no other client out."""

from __future__ import annotations

import socket
import threading

import pytest
from helpers import WAIT, TLSEnd, makes, receive_exactly, wait_until

import relay
from relay.streams import lookups

HELLO = b"\5\1\0"
SERVED = b"\5\0\5\0\0\1" + bytes(6)


def request(host: str, port: int) -> bytes:
    return HELLO + b"\5\1\0\3" + bytes([len(host)]) + host.encode() + port.to_bytes(2, "big")


@pytest.fixture
def crowd():
    """Makes clients that stay: ``crowd(address, text)``."""

    def make(address, text=b""):
        client = socket.create_connection(address, WAIT)
        client.sendall(text)
        return client

    yield from makes(make)


def test_names_that_nobody_resolves(crowd, echo_server, monkeypatch):
    monkeypatch.setattr(lookups, "_MOST", 4)
    monkeypatch.setattr(lookups, "_SHARE", 4)
    monkeypatch.setattr(lookups, "_WAITING", 8)
    monkeypatch.setattr("relay.engine.relay_thread.MOST_CALLS", 4)
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
            client = crowd(tunnel.address, HELLO + b"\5\1\0\1\x7f\0\0\1" + port.to_bytes(2, "big"))
            assert receive_exactly(client, 12) == SERVED
            exchange_with_itself(client)
            wait_until(lambda: tunnel.stats().failed == {"overloaded": 8})
            threads = [one for one in threading.enumerate() if "connector" in one.name]
            assert len(threads) <= 5
        finally:
            go.set()
        answers = [receive_exactly(client, 12) for client in waiting]
        assert answers.count(SERVED) == 12
        assert answers.count(b"\5\0\5\1\0\1" + bytes(6)) == 8


@pytest.mark.parametrize("way", ["socks", "http", "tls"])
def test_half_open_clients(crowd, echo_server, certificates, way):
    """As many as there are slots, without and with a first byte, and new ones all the time."""
    listener = {
        "socks": lambda: relay.socks_listen("127.0.0.1", 0),
        "http": lambda: relay.http_listen("127.0.0.1", 0),
        "tls": lambda: relay.listen(f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}"),
    }[way]()
    factory = relay.tcp(*echo_server.address) if way == "tls" else relay.dynamic()
    with relay.Tunnel(listener, factory, nconnect=2) as tunnel:
        for number in range(1100):
            crowd(tunnel.address, b"\5" if number % 2 else b"")
        with socket.create_connection(tunnel.address, WAIT) as client:
            exchange_with_itself(proper(client, way, echo_server.address, certificates))


def proper(client, way, address, certificates):
    host, port = address
    if way == "tls":
        return TLSEnd(client, certificates.client())
    if way == "http":
        client.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        assert receive_exactly(client, 39) == b"HTTP/1.1 200 Connection established\r\n\r\n"
    else:
        client.sendall(HELLO + b"\5\1\0\1" + socket.inet_aton(host) + port.to_bytes(2, "big"))
        assert receive_exactly(client, 12) == SERVED
    return client


def exchange_with_itself(client):
    client.sendall(b"ping")
    assert receive_exactly(client, 4) == b"ping"
