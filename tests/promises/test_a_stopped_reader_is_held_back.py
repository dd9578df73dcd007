"""A reader that stops: memory stays bounded, the pressure reaches the sender, no other connection notices."""

import contextlib
import hashlib
import socket
from pathlib import Path

import pytest
from helpers import BLOCK, WAIT, Thread, exchange, flood, receive_exactly, send_and_end, sha256_of

MANY = 100
BOUND = 128 << 20  # bytes; the kernel's four buffers on the way are about half of that at most


def resident():
    """The memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def fill(sender, bound=BOUND):
    """Send until nothing goes in any more; returns how much did."""
    sent = 0
    sender.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while sent < bound:
            sent += sender.send(BLOCK[sent % len(BLOCK) :])
    sender.settimeout(WAIT)
    return sent


@pytest.mark.parametrize("who", ["client", "target"])
@pytest.mark.parametrize("way", ["tcp", "unix", "tls"])
def test_the_pressure_reaches_the_sender_and_nothing_is_lost(relayed, any_engine, who, way):
    rig = relayed(way_out=way)
    client, far = rig.connect()
    sender, reader = (client, far) if who == "client" else (far, client)
    if way == "tls" and who == "target":
        sending = Thread(flood, sender)
        sending.join(0.5)
        assert sending.is_alive(), "128 MiB vanished in a relay whose client does not read"
        for _ in range(128):
            assert receive_exactly(reader, len(BLOCK)) == BLOCK
        sending.result()
        return
    sent = fill(sender)
    assert sent < BOUND, "128 MiB vanished in a relay whose reader does not read"
    whole = (BLOCK * (sent // len(BLOCK) + 1))[:sent]
    assert receive_exactly(reader, sent) == whole


def test_memory_is_bounded_and_nobody_else_notices(relayed, any_engine):
    rig = relayed()
    # Small kernel buffers, so that what is measured is the relay's own.
    rig.target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    stopped = [rig.connect() for _ in range(MANY)]
    lively, lively_far = rig.connect()
    much = BLOCK * 16
    expected = hashlib.sha256(much).hexdigest()
    before = resident()
    for client, _ in stopped:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        client.setblocking(False)
        push(client)
    for client, _ in stopped:  # once more, now that the relay has had its turn
        push(client)
    for _ in range(50):
        exchange(lively, lively_far)
    sending = Thread(send_and_end, lively, much)
    assert sha256_of(lively_far) == expected
    sending.result()
    grown = resident() - before
    assert grown < MANY * 256 * 1024, f"{grown / MANY / 1024:.0f} KiB for each stopped connection"
    assert rig.tunnel.stats().active >= MANY


def push(client):
    with contextlib.suppress(BlockingIOError):
        for _ in range(16):
            client.send(BLOCK)


def test_a_bridged_object_holds_back_too(relayed):
    """An object that has no descriptor is pumped by threads, which must not read ahead either."""

    class Object:
        def __init__(self):
            self.near = socket.create_connection(rig.target.getsockname())
            self.recv, self.sendall = self.near.recv, self.near.sendall

        def close(self):
            with contextlib.suppress(OSError):
                self.near.shutdown(socket.SHUT_RDWR)
            self.near.close()

    rig = relayed(Object)
    client, far = rig.connect()
    sent = fill(client)
    assert sent < BOUND
    other, other_far = rig.connect()
    exchange(other, other_far)
    assert receive_exactly(far, sent) == (BLOCK * (sent // len(BLOCK) + 1))[:sent]
