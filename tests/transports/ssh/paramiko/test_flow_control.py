"""The window and the backlog of a channel."""

from __future__ import annotations

import hashlib
from collections import deque

import pytest

from relay.transports.ssh.paramiko.flow_control import Backlog


class Taker:
    """A socket that takes so many bytes, again and again."""

    def __init__(self, *sizes):
        self.sizes = deque(sizes)
        self.got = b""

    def sendmsg(self, pieces):
        offered = b"".join(pieces)
        size = self.sizes.popleft() if self.sizes else 0
        self.got += offered[:size]
        return min(size, len(offered))


@pytest.mark.parametrize("piece", [1, 7, 1000, 32768, 65536, 70_000])
def test_bytes_come_out_in_order(piece):
    text = hashlib.shake_128(b"backlog").digest(200_000)
    backlog, taker = Backlog(), Taker(*(1, 65_535, 0, 3, 65_536, 40_000) * 9)
    for start in range(0, len(text), piece):
        backlog.add(memoryview(text)[start : start + piece])
        if start // piece % max(1, 3000 // piece) == 0 and backlog:
            backlog.send(taker.sendmsg)
        assert len(backlog) == min(start + piece, len(text)) - len(taker.got)
    taker.sizes.extend([50_000] * 60)
    while backlog:
        backlog.send(taker.sendmsg)
    assert taker.got == text


def test_small_pieces_are_gathered():
    backlog = Backlog()
    for _ in range(200_000):
        backlog.add(memoryview(b"x"))
    assert len(backlog._chunks) == 4
    backlog.clear()
    assert not backlog
    backlog.add(memoryview(b"anew"))
    taker = Taker(10)
    assert backlog.send(taker.sendmsg) == 4
    assert taker.got == b"anew"
