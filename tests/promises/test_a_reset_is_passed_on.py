"""A reset on either side is passed on as a reset."""

import socket

import pytest
from helpers import BLOCK, Thread, ended, ending, exchange, flood

from relay.eventloop.sockets import reset

TIMES = 40


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_reset_reaches_the_other_side(relayed, any_engine, who):
    rig = relayed()
    for _ in range(TIMES):
        client, far = rig.connect()
        exchange(client, far)
        reset(client if who == "client" else far)
        assert ending(far if who == "client" else client) == "reset"
    assert ended(rig.tunnel, TIMES) == [f"{who}_reset"] * TIMES
    assert rig.tunnel.stats().failed == {f"{who}_reset": TIMES}


def test_a_reset_among_many_live_connections_ends_its_own_alone(relayed, any_engine):
    rig = relayed()
    pairs = [rig.connect() for _ in range(TIMES)]
    for client, far in pairs[::2]:
        reset(client)
        assert ending(far) == "reset"
    for client, far in pairs[1::2]:
        exchange(client, far)


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_reset_in_the_middle_of_bulk_is_passed_on(relayed, any_engine, who):
    rig = relayed()
    client, far = rig.connect()
    sender, receiver = (client, far) if who == "client" else (far, client)
    sending = Thread(flood, sender)
    assert len(receiver.recv(1 << 16))
    reset(receiver)
    with pytest.raises(ConnectionError):
        sending.result()
    assert ended(rig.tunnel) == ["target_reset" if who == "client" else "client_reset"]


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_reset_while_the_other_side_does_not_read_is_passed_on(relayed, any_engine, who):
    """Both buffers are full and nothing can be written: the reset must be seen without moving a byte."""
    rig = relayed()
    client, far = rig.connect()
    sender, stopped = (client, far) if who == "client" else (far, client)
    sender.settimeout(0.3)
    with pytest.raises(TimeoutError):
        flood(sender)
    reset(sender)
    assert ended(rig.tunnel) == [f"{who}_reset"]
    assert ending(stopped) == "reset"


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_reset_after_an_end_is_passed_on(relayed, any_engine, who):
    """A side that has ended its own direction, and then goes for good, takes the rest with it."""
    rig = relayed()
    client, far = rig.connect()
    sender, other = (client, far) if who == "client" else (far, client)
    sender.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    reset(sender)
    with pytest.raises(ConnectionError):
        while True:
            other.sendall(BLOCK)
    assert ended(rig.tunnel) == [f"{who}_reset"]


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_truncated_tls_stream_is_a_reset_and_not_an_end(relayed, who):
    rig = relayed(way_in="tls" if who == "client" else "tcp", way_out="tls" if who == "target" else "tcp")
    client, far = rig.connect()
    exchange(client, far)
    cut, other = (client, far) if who == "client" else (far, client)
    cut.close()  # without close_notify
    assert ending(other) == "reset"
    assert ended(rig.tunnel) == [f"{who}_reset"]


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_reset_ends_a_unix_peer(relayed, who):
    """A Unix peer cannot see a reset (see the table of guarantees); its stream ends all the same."""
    rig = relayed(way_in="unix" if who == "target" else "tcp", way_out="unix" if who == "client" else "tcp")
    client, far = rig.connect()
    exchange(client, far)
    cut, other = (client, far) if who == "client" else (far, client)
    reset(cut)
    ending(other)
    assert ended(rig.tunnel) == [f"{who}_reset"]
