"""Half-close is kept both ways, over TCP, Unix and TLS."""

import socket
import threading

import pytest
from helpers import BLOCK, Thread, ended, receive_all, receive_exactly, send_and_end

WAYS = [
    ("tcp", "tcp"),
    ("unix", "tcp"),
    ("tcp", "unix"),
    ("unix", "unix"),
    ("tls", "tcp"),
    ("tcp", "tls"),
    ("tls", "tls"),
]


def test_a_reply_two_seconds_after_the_clients_end_arrives_whole(relayed):
    rigs = [relayed(way_in=way_in, way_out=way_out) for way_in, way_out in WAYS]
    pairs = [rig.connect() for rig in rigs]
    for client, far in pairs:
        send_and_end(client, b"request")
        assert receive_all(far) == b"request"
    threading.Event().wait(2.0)  # the promise's own two seconds
    for rig, (client, far) in zip(rigs, pairs, strict=True):
        reply = Thread(send_and_end, far, BLOCK)
        assert receive_all(client) == BLOCK
        reply.result()
        assert ended(rig.tunnel) == ["done"]


@pytest.mark.parametrize(("way_in", "way_out"), WAYS)
def test_a_target_that_ends_first_receives_the_rest_of_the_upload(relayed, any_engine, way_in, way_out):
    rig = relayed(way_in=way_in, way_out=way_out)
    client, far = rig.connect()
    client.sendall(BLOCK[:1000])
    assert receive_exactly(far, 1000) == BLOCK[:1000]
    send_and_end(far, b"goodbye")
    assert receive_all(client) == b"goodbye"
    upload = Thread(send_and_end, client, BLOCK * 3)
    assert receive_all(far) == BLOCK * 3
    upload.result()
    assert ended(rig.tunnel) == ["done"]


@pytest.mark.parametrize(("way_in", "way_out"), WAYS)
def test_a_client_that_ends_at_once_still_delivers_and_still_receives(relayed, any_engine, way_in, way_out):
    rig = relayed(way_in=way_in, way_out=way_out)
    client, far = rig.connect()
    upload = Thread(send_and_end, client, BLOCK)
    assert receive_all(far) == BLOCK
    upload.result()
    reply = Thread(send_and_end, far, BLOCK[::-1])
    assert receive_all(client) == BLOCK[::-1]
    reply.result()
    assert ended(rig.tunnel) == ["done"]


def test_an_end_without_a_byte_is_passed_on(relayed, any_engine):
    rig = relayed()
    client, far = rig.connect()
    client.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    far.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    assert ended(rig.tunnel) == ["done"]
