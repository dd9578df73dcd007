"""The log has a bounded number of lines about what a client can repeat at will; records and figures have all of it."""

import contextlib
import logging
import socket

import pytest
from helpers import WAIT, receive_rest, reserved_port, wait_until

import relay

CLIENTS, LINES = 70, 60


def socks(name, port):
    return b"\5\1\0\5\1\0\3" + bytes([len(name)]) + name.encode() + port.to_bytes(2, "big")


def direct():
    return socket.create_server(("127.0.0.1", 0))


@pytest.fixture(params=["a dead target", "a dead target by SOCKS", "a rule", "a program", "a method"])
def failing(request):
    """Return a listener, a factory, and what a client sends; each connection fails."""
    with reserved_port() as dead:
        match request.param:
            case "a dead target":
                yield direct(), relay.tcp("127.0.0.1", dead), b"x"
            case "a dead target by SOCKS":
                yield relay.socks_listen("127.0.0.1", 0), relay.dynamic(), socks("127.0.0.1", dead)
            case "a rule":
                sent = b"CONNECT 10.0.0.1:80 HTTP/1.1\r\nHost: x\r\n\r\n"
                yield relay.http_listen("127.0.0.1", 0), relay.dynamic(rules=["10.0.0.0/8=refuse"]), sent
            case "a program":
                yield direct(), relay.target("exec:false"), b"x"
            case "a method":
                sent = b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n"
                yield relay.http_listen("127.0.0.1", 0), relay.dynamic(), sent


def test_a_minute_has_so_many_lines_and_every_connection_a_record(failing, caplog):
    receive, make_send, sent = failing
    records = []
    with relay.Tunnel(receive, make_send, name="it", timeout=None, on_end=records.append) as tunnel:
        for _ in range(CLIENTS):
            with contextlib.suppress(ConnectionError), socket.create_connection(tunnel.address, WAIT) as client:
                client.sendall(sent)
                receive_rest(client)
        wait_until(lambda: len(records) == CLIENTS)
        assert sum(tunnel.stats().failed.values()) == CLIENTS
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) <= LINES + 1, lines  # the end of the tunnel has one, with the number of those that were left out
    if len(lines) > LINES:
        assert lines[-1].endswith("; 9 more like this since the last such line")
