"""``first_byte_timeout`` ends a connection whose target sends nothing after the client's first byte."""

import logging
import socket
import time

import pytest
from helpers import BLOCK, WAIT, ended, ending, exchange, expire, flood, receive_exactly, send_and_end, wait_until

import relay
from relay.engine import changes

SHORT = 0.3  # seconds of a limit that a test waits for
LONG = 1000.0  # seconds of one that comes when the test says so
LIMITS = {"nconnect": -1, "timeout": None, "connect_timeout": WAIT, "idle_timeout": None, "linger": None}


def asked(rig, client, far):
    """Let the client send its first byte; return a time before it."""
    before = time.monotonic()
    client.sendall(b"ask")
    assert receive_exactly(far, 3) == b"ask"
    return before


@pytest.mark.parametrize("way_out", ["tcp", "unix", "tls"])
def test_a_target_that_sends_nothing_is_unreachable(relayed, any_engine, caplog, way_out):
    rig = relayed(way_out=way_out, timeout=None, first_byte_timeout=SHORT, name="web")
    client, far = rig.connect()
    asked(rig, client, far)
    assert ending(client) == ending(far) == "reset"
    assert ended(rig.tunnel) == ["unreachable"]
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    said = ": has sent nothing within first_byte_timeout; check that the service is running (client "
    assert line.getMessage().startswith("web: ") and said in line.getMessage()


def test_the_time_begins_with_the_first_byte_of_the_client(relayed):
    """A connection that is not used lives, and each look is in time for what has come since the look before."""
    rig = relayed(timeout=None, first_byte_timeout=LONG)
    client, far = rig.connect()
    for number in range(1, 4):
        expire(rig.tunnel, time.monotonic() + number * LONG)
    before = asked(rig, client, far)
    expire(rig.tunnel, before + LONG)
    assert rig.tunnel.stats().active == 1
    expire(rig.tunnel, time.monotonic() + LONG)
    assert ended(rig.tunnel) == ["unreachable"]


def test_no_further_byte_of_the_client_puts_it_off(relayed, any_engine):
    rig = relayed(timeout=None, first_byte_timeout=LONG)
    client, far = rig.connect()
    asked(rig, client, far)
    after = time.monotonic()
    for size in (5, len(BLOCK), 5):  # copied, in bulk, and copied again
        client.sendall(BLOCK[:size])
        assert receive_exactly(far, size) == BLOCK[:size]
    expire(rig.tunnel, after + LONG)
    assert ended(rig.tunnel) == ["unreachable"]


def test_a_target_that_takes_nothing_either(relayed, any_engine):
    rig = relayed(timeout=None, first_byte_timeout=SHORT)
    client, _far = rig.connect()
    with pytest.raises(ConnectionError):
        flood(client)
    assert ended(rig.tunnel) == ["unreachable"]


@pytest.mark.parametrize("size", [1, len(BLOCK)])
def test_one_byte_of_the_target_is_an_answer(relayed, any_engine, size):
    rig = relayed(timeout=None, first_byte_timeout=LONG)
    client, far = rig.connect()
    asked(rig, client, far)
    far.sendall(BLOCK[:size])
    assert receive_exactly(client, size) == BLOCK[:size]
    expire(rig.tunnel, time.monotonic() + 2 * LONG)
    exchange(client, far)


def test_a_target_that_speaks_first_has_answered(relayed):
    rig = relayed(timeout=None, first_byte_timeout=LONG)
    client, far = rig.connect()
    far.sendall(b"220 mail.example\r\n")
    assert receive_exactly(client, 18) == b"220 mail.example\r\n"
    asked(rig, client, far)
    expire(rig.tunnel, time.monotonic() + 2 * LONG)
    exchange(client, far)


def test_an_answer_that_the_client_does_not_take_is_one(relayed):
    rig = relayed(timeout=None, first_byte_timeout=LONG)
    client, far = rig.connect()
    asked(rig, client, far)
    far.settimeout(0.2)
    with pytest.raises(TimeoutError):
        while True:
            far.send(BLOCK)
    expire(rig.tunnel, time.monotonic() + 2 * LONG)
    assert rig.tunnel.stats().active == 1


def test_the_end_of_the_target_is_an_answer(relayed, any_engine):
    """It will send nothing more: whether the client goes on is not a question of its first byte."""
    rig = relayed(timeout=None, linger=None, first_byte_timeout=LONG)
    client, far = rig.connect()
    asked(rig, client, far)
    far.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    expire(rig.tunnel, time.monotonic() + 2 * LONG)
    send_and_end(client, b"rest")
    assert receive_exactly(far, 4) == b"rest"
    assert ended(rig.tunnel) == ["done"]


def test_a_client_that_has_half_closed_waits_no_longer(relayed, any_engine):
    rig = relayed(timeout=None, linger=LONG, first_byte_timeout=SHORT)
    client, far = rig.connect()
    send_and_end(client, b"ask")
    assert receive_exactly(far, 3) == b"ask"
    assert ending(client) == "reset"
    assert ended(rig.tunnel) == ["unreachable"]


def test_a_warm_stream_is_given_up_as_well(relayed):
    rig = relayed(timeout=None, first_byte_timeout=SHORT, warm=1)
    far = rig.accept()
    wait_until(lambda: rig.tunnel.metrics().warm.ready == 1)
    client = rig.client()
    asked(rig, client, far)
    assert ending(client) == ending(far) == "reset"
    assert ended(rig.tunnel) == ["unreachable"]


def test_a_change_holds_for_new_connections(relayed):
    rig = relayed(timeout=None)
    old, old_far = rig.connect()
    changes.update(rig.tunnel, **LIMITS, first_byte_timeout=SHORT)
    client, far = rig.connect()
    asked(rig, old, old_far)
    asked(rig, client, far)
    assert ending(client) == "reset"
    changes.update(rig.tunnel, **LIMITS)
    later, later_far = rig.connect()
    asked(rig, later, later_far)
    expire(rig.tunnel, time.monotonic() + LONG)
    exchange(old, old_far)
    exchange(later, later_far)


def test_a_proxy_has_it_for_each_target(relayed):
    rig = relayed()
    host, port = rig.target.getsockname()
    with relay.Tunnel(
        relay.listen("socks5://127.0.0.1:0"), relay.dynamic([]), timeout=None, first_byte_timeout=SHORT
    ) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.sendall(b"\5\1\0")
            assert receive_exactly(client, 2) == b"\5\0"
            client.sendall(b"\5\1\0\1" + socket.inet_aton(host) + port.to_bytes(2, "big"))
            assert receive_exactly(client, 10)[1] == 0
            asked(rig, client, rig.accept())
            assert ending(client) == "reset"
        assert ended(tunnel) == ["unreachable"]
