"""A bandwidth only slows streams down, whatever their kind: each byte arrives, and each end of file."""

import contextlib
import socket
import ssl
import sys

import pytest
from helpers import BLOCK, WAIT, Thread, ended, receive_all

import relay

BYTES = BLOCK * 2
LIMITS = {
    "shared": [{"per": "tunnel", "bandwidth": "20MB/s"}],
    "one": [{"per": "connection", "bandwidth": "20MB/s"}],
    "both": [{"per": "ip", "bandwidth": "15MB/s"}, {"per": "connection", "bandwidth": "20MB/s"}],
    "quota": [{"per": "tunnel", "quota": "100MB/day"}],
}


def reverse(connection):
    """Send back all that has come, after its end."""
    data = receive_all(connection)
    connection.sendall(data[::-1])


def encrypted(certificates):
    """The same over TLS."""

    def work(connection):
        with certificates.server().wrap_socket(connection, server_side=True) as end:
            end.sendall(receive_all(end)[::-1])
            with contextlib.suppress(OSError, ssl.SSLError):
                end.unwrap()

    return work


def transfer(tunnel):
    with socket.create_connection(tunnel.address, WAIT) as client:
        sender = Thread(send, client)
        data = receive_all(client)
        sender.result()
    return data


def send(client):
    client.sendall(BYTES)
    client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
def test_three_clients_at_once(serve, certificates, tmp_path, limit, kind):
    if kind == "tls":
        server = serve(encrypted(certificates))
        target = relay.target(f"tls://localhost:{server.address[1]}?ca={certificates.ca}")
    else:
        server = serve(reverse, str(tmp_path / "s")) if kind == "unix" else serve(reverse)
        target = server.factory()
    with relay.Tunnel(relay.listen(":0"), target, timeout=None, limit=LIMITS[limit]) as tunnel:
        clients = [Thread(transfer, tunnel) for _ in range(3)]
        assert all(client.result() == BYTES[::-1] for client in clients)
        assert ended(tunnel, 3) == ["done"] * 3
        assert {(record.received, record.sent) for record in tunnel.recent()} == {(len(BYTES), len(BYTES))}
        if kind == "tcp" and limit in ("one", "quota") and sys.platform == "linux":
            assert {record.engine for record in tunnel.recent()} == {"splice"}
