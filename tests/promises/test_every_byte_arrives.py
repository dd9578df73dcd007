"""Every byte arrives, once and in order, whatever the sizes and the directions."""

import hashlib
import random

import pytest
from helpers import BLOCK, Thread, ended, receive_all, receive_exactly, send_and_end, sha256_of

SIZE = 24 << 20


@pytest.fixture(scope="module")
def much():
    """24 MiB for each direction, with their hashes."""
    made = [random.Random(seed).randbytes(SIZE) for seed in (1, 2)]
    return [(data, hashlib.sha256(data).hexdigest()) for data in made]


@pytest.mark.parametrize(
    ("way_in", "way_out"), [("tcp", "tcp"), ("unix", "unix"), ("unix", "tcp"), ("tls", "tcp"), ("tcp", "tls")]
)
def test_24_mib_both_ways_at_once(relayed, any_engine, much, way_in, way_out):
    rig = relayed(way_in=way_in, way_out=way_out)
    client, far = rig.connect()
    (up, up_hash), (down, down_hash) = much
    if "tls" in (way_in, way_out):
        # the tests' TLS peer is for one thread: one way after the other
        sending = Thread(send_and_end, client, up)
        assert sha256_of(far) == up_hash
        sending.result()
        sending = Thread(send_and_end, far, down)
        assert sha256_of(client) == down_hash
        sending.result()
    else:
        received = [Thread(sha256_of, far), Thread(sha256_of, client)]
        senders = [Thread(send_and_end, client, up), Thread(send_and_end, far, down)]
        assert [thread.result(30) for thread in received] == [up_hash, down_hash]
        for thread in senders:
            thread.result()
    assert ended(rig.tunnel) == ["done"]
    assert rig.tunnel.recent()[-1].received == rig.tunnel.recent()[-1].sent == SIZE
    assert rig.tunnel.stats().received == rig.tunnel.stats().sent == SIZE


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1009, 7919, 65521, 65537, 1048573])
def test_writes_of_any_size(relayed, any_engine, size):
    rig = relayed()
    client, far = rig.connect()
    data = BLOCK[: size * 2000] if size < 500 else BLOCK
    received = Thread(receive_all, far)
    for start in range(0, len(data), size):
        client.sendall(data[start : start + size])
    send_and_end(client, b"")
    assert received.result() == data


def test_messages_of_a_byte_after_bulk_and_bulk_after_them(relayed, any_engine):
    """A flow that turned to splicing turns back, and again, without losing the thread."""
    rig = relayed()
    client, far = rig.connect()
    for _ in range(3):
        sending = Thread(client.sendall, BLOCK * 8)
        assert receive_exactly(far, 8 << 20) == BLOCK * 8
        sending.result()
        for number in range(300):
            client.sendall(bytes([number % 256]))
            assert far.recv(10) == bytes([number % 256])


def test_a_reader_that_reads_in_odd_pieces(relayed, any_engine):
    rig = relayed()
    client, far = rig.connect()
    sending = Thread(send_and_end, client, BLOCK * 4)
    sizes = random.Random(3)
    got = bytearray()
    while piece := far.recv(sizes.choice([1, 13, 1021, 40009])):
        got += piece
    assert got == BLOCK * 4
    sending.result()


@pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
def test_a_gibibyte_one_way(relayed, upload):
    rig = relayed()
    client, far = rig.connect()
    sender, receiver = (client, far) if upload else (far, client)
    sending = Thread(send_blocks, sender, 1024)
    pattern, buffer = memoryview(BLOCK * 2), memoryview(bytearray(len(BLOCK)))
    total = 0
    while size := receiver.recv_into(buffer):
        place = total % len(BLOCK)
        # C compares whole slices of bytes; element by element it would take minutes
        assert bytes(buffer[:size]) == bytes(pattern[place : place + size]), f"wrong bytes after {total}"
        total += size
    assert total == 1 << 30
    sending.result()


def send_blocks(sender, count):
    for _ in range(count):
        sender.sendall(BLOCK)
    send_and_end(sender, b"")
