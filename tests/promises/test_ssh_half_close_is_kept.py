"""Half-close is kept both ways over SSH."""

import socket
import threading

import pytest
from helpers import BLOCK, Thread, ended, receive_all, receive_exactly, send_and_end


@pytest.mark.parametrize("way_out", ["tcp", "unix"])
def test_a_reply_after_the_clients_end_arrives_whole(far_end, over_ssh, way_out):
    rig = over_ssh(far_end.url, way_out=way_out)
    client, far = rig.connect()
    send_and_end(client, b"request")
    assert receive_all(far) == b"request"
    threading.Event().wait(0.25)  # long enough for a half-close to be mistaken for an end
    reply = Thread(send_and_end, far, BLOCK)
    assert receive_all(client) == BLOCK
    reply.result()
    assert ended(rig.tunnel) == ["done"]


@pytest.mark.parametrize("way_out", ["tcp", "unix"])
def test_what_a_client_sends_after_the_targets_end_arrives_whole(far_end, over_ssh, way_out):
    rig = over_ssh(far_end.url, way_out=way_out)
    client, far = rig.connect()
    client.sendall(b"request")
    assert receive_exactly(far, 7) == b"request"
    send_and_end(far, b"enough")
    assert receive_all(client) == b"enough"
    rest = Thread(send_and_end, client, BLOCK)
    assert receive_all(far) == BLOCK
    rest.result()
    assert ended(rig.tunnel) == ["done"]


def test_streams_that_end_at_once_both_ways(far_end, over_ssh):
    """The ends of both directions cross; neither loses what was sent before it."""
    rig = over_ssh(far_end.url)
    pairs = [rig.connect() for _ in range(10)]
    for client, far in pairs:
        for end in (client, far):
            end.sendall(b"last words")
        for end in (client, far):
            end.shutdown(socket.SHUT_WR)
    for client, far in pairs:
        assert (receive_all(client), receive_all(far)) == (b"last words", b"last words")
    assert ended(rig.tunnel, 10) == ["done"] * 10
