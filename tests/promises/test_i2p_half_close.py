"""SAM has no half-close. What it can carry is kept: an end waits for the answer, and nothing that was sent is lost."""

import shutil
import socket
import subprocess
import threading
import time

import pytest
from helpers import (
    BLOCK,
    WAIT,
    Thread,
    ended,
    exchange,
    expire,
    receive_all,
    receive_exactly,
    send_all,
    send_and_end,
    wait_until,
)

LINGER = 0.5  # seconds


def deliver(source, sink, data):
    """Send all of it, and receive it. Then it may end: i2pd drops what waits in it for a reader when the end comes."""
    sending = Thread(send_all, source, data)
    assert receive_exactly(sink, len(data)) == data
    sending.result()


def test_a_request_with_an_end_gets_its_answer(i2p_world, over_i2p):
    rig = over_i2p(i2p_world)
    client, far = rig.connect()
    send_and_end(client, b"request")
    assert receive_exactly(far, 7) == b"request"
    threading.Event().wait(0.25)  # long enough for a half-close to be mistaken for an end
    deliver(far, client, BLOCK)
    far.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b""
    assert ended(rig.tunnel) == ended(rig.server) == ["done"]


def test_netcat_gets_its_answer(i2p_world, serve):
    """As in ``printf request | nc -N``."""
    if shutil.which("nc") is None:
        pytest.skip("there is no nc (Debian: netcat-openbsd)")

    def answer(connection):
        request = receive_exactly(connection, 7)
        connection.sendall(request.upper())

    with i2p_world.serve(serve(answer).address[1]) as server, i2p_world.reach(server.dest) as client:
        argv = ["nc", "-N", *map(str, client.address)]
        done = subprocess.run(argv, input=b"request", stdout=subprocess.PIPE, timeout=3 * WAIT, check=True)
        assert done.stdout == b"REQUEST"


def test_what_a_client_sent_before_its_end_arrives_whole(i2p_world, over_i2p):
    """The end itself comes after ``linger``, without an answer."""
    rig = over_i2p(i2p_world, reach={"linger": 1000.0})
    client, far = rig.connect()
    upload = Thread(send_and_end, client, BLOCK * 2)
    assert receive_exactly(far, len(BLOCK) * 2) == BLOCK * 2
    upload.result()
    wait_until(lambda: rig.tunnel.connections()[0].state == "half-closed")
    for look in (1, 2, 3):  # the first ones may find that bytes still leave the kernel
        expire(rig.tunnel, time.monotonic() + look * 3000.0)
    assert receive_all(far) == b""
    assert ended(rig.tunnel) == ["linger"]


def test_an_upload_under_way_is_not_cut_by_the_end_of_the_service(i2p_world, over_i2p):
    rig = over_i2p(i2p_world)
    client, far = rig.connect()
    client.sendall(b"first")
    assert receive_exactly(far, 5) == b"first"
    send_and_end(far, b"enough")
    upload = Thread(trickle, client)
    assert receive_all(far) == bytes(range(8))
    upload.result()
    assert receive_all(client) == b"enough"


def trickle(client):
    for piece in range(8):
        threading.Event().wait(0.2)  # longer in all than the second of the rule, shorter each time
        client.sendall(bytes([piece]))
    client.shutdown(1)


def test_ends_that_cross_lose_nothing(i2p_world, over_i2p):
    rig = over_i2p(i2p_world)
    pairs = [rig.connect() for _ in range(10)]
    for client, far in pairs:
        exchange(client, far)
    for client, far in pairs:
        for end in (client, far):
            send_and_end(end, b"last words")
    for client, far in pairs:
        assert (receive_all(client), receive_all(far)) == (b"last words", b"last words")


def test_one_that_closes_whole_ends_the_other(i2p_world, over_i2p):
    rig = over_i2p(i2p_world, linger=LINGER)
    client, far = rig.connect()
    client.sendall(b"bye")
    client.close()
    assert receive_all(far) == b"bye"
    ended(rig.tunnel)
    ended(rig.server)
