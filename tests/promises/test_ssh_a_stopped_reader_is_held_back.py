"""A reader that stops is felt by its sender over SSH, costs bounded memory, and does not stop its neighbours."""

import hashlib

import pytest
from helpers import BLOCK, WAIT, Thread, exchange, receive_all, send_and_end

BOUND = 48 << 20  # bytes under way in one direction at most: windows and kernel buffers, at every hop


def fill(end):
    """Send until nothing has gone in for a moment; returns how much did."""
    sent = 0
    end.settimeout(0.25)
    with pytest.raises(TimeoutError):
        while sent < 2 * BOUND:
            sent += end.send(BLOCK)
    end.settimeout(WAIT)
    return sent


@pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
def test_one_is_held_back_and_the_others_go_on(far_end, over_ssh, upload):
    rig = over_ssh(far_end.url)
    stalled = rig.connect()
    neighbour = rig.connect()
    exchange(*neighbour)
    sender, reader = stalled if upload else stalled[::-1]
    sent = fill(sender)
    assert sent < BOUND
    exchange(*neighbour)
    exchange(*rig.connect())
    for near, far in (neighbour, neighbour[::-1]):
        sending = Thread(send_and_end, near, BLOCK * 4)
        assert hashlib.sha256(receive_all(far)).digest() == hashlib.sha256(BLOCK * 4).digest()
        sending.result()
    assert far_end.logins == 1
    # What was held back is all there.
    left = sent
    while left:
        left -= len(reader.recv(min(left, 1 << 20)))
