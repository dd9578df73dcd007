"""A server that accepts a connection and is no SSH server: an error when the time is over that was given."""

import struct
import threading
import time

import pytest
from helpers import PROMPT, WAIT, ended, fate_of_client, refusing, wait_until

import relay

TIMEOUT = 0.3  # seconds


def silent(connection):
    connection.recv(1 << 16)
    connection.recv(1)


def garbage(connection):
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def much_garbage(connection):
    for _ in range(1000):
        connection.sendall(bytes(1 << 16))


def a_line_without_end(connection):
    connection.sendall(b"SSH-2.0-" + b"x" * (1 << 20))
    connection.recv(1)


def half_a_key_exchange(connection):
    connection.sendall(b"SSH-2.0-none\r\n")
    connection.recv(1 << 16)
    connection.sendall(struct.pack(">IBB", 1000, 4, 20) + bytes(100))


def a_key_exchange_that_never_ends(connection):
    half_a_key_exchange(connection)
    while connection.recv(1 << 16):
        pass


def another_version(connection):
    connection.sendall(b"SSH-1.5-old\r\n")
    connection.recv(1)


def a_packet_that_is_too_long(connection):
    connection.sendall(b"SSH-2.0-none\r\n" + b"\xff" * 100)
    connection.recv(1)


KINDS = [
    silent,
    garbage,
    much_garbage,
    a_line_without_end,
    half_a_key_exchange,
    a_key_exchange_that_never_ends,
    another_version,
    a_packet_that_is_too_long,
]


def url_of(address, backend, tmp_path):
    (tmp_path / "known_hosts").touch()
    host, port = address
    return f"ssh://me@{host}:{port}?backend={backend}&known_hosts={tmp_path}/known_hosts&config=/dev/null"


@pytest.mark.parametrize("kind", KINDS)
def test_connect_raises_in_time(kind, backend, serve, tmp_path):
    url = url_of(serve(kind).address, backend, tmp_path)
    begin = time.monotonic()
    with pytest.raises((relay.ConnectError, relay.CarrierError)) as failed:
        relay.connect("127.0.0.1:9", via=[url], timeout=TIMEOUT)
    assert time.monotonic() - begin < PROMPT
    text = str(failed.value)
    assert "\n" not in text
    assert text.isprintable()
    assert "127.0.0.1" in text


@pytest.mark.parametrize("kind", [silent, garbage, half_a_key_exchange])
def test_a_client_is_reset_in_time(kind, backend, serve, tmp_path):
    url = url_of(serve(kind).address, backend, tmp_path)
    target = relay.target("127.0.0.1:9", via=[url])
    with relay.Tunnel(relay.listen(":0"), target, connect_timeout=TIMEOUT) as tunnel:
        begin = time.monotonic()
        assert fate_of_client(tunnel.address) == "reset"
        assert time.monotonic() - begin < PROMPT
        assert ended(tunnel)[0] in ("connect_timeout", "carrier_lost", "unreachable")


def test_nobody_listens(backend, tmp_path):
    with refusing() as address:
        with pytest.raises(relay.ConnectError) as failed:
            relay.connect("127.0.0.1:9", via=[url_of(address, backend, tmp_path)], timeout=WAIT)
    assert failed.value.reason == "refused"


def test_ready_raises_in_time_and_close_leaves_nothing(backend, serve, tmp_path):
    came, gone = threading.Event(), threading.Event()

    def wait_for_the_end(connection):
        came.set()
        while connection.recv(1 << 16):
            pass
        gone.set()

    factory = relay.ssh(url_of(serve(wait_for_the_end).address, backend, tmp_path), "127.0.0.1", 9)
    with pytest.raises(relay.ConnectError):
        factory.ready(TIMEOUT)
    factory.close()
    wait_until(lambda: gone.is_set() or not came.is_set())  # on a busy machine the time is over before the connect
