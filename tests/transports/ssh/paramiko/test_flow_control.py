"""The window and the backlog of a channel."""

import hashlib
import math
from collections import deque

import pytest

from relay.transports.ssh.paramiko.flow_control import LARGEST, LEAST, TOGETHER, WINDOW, Backlog, Window, first_window


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


# The window.


def windows(seconds, count=40, *, round_trip=0.1, backlog=False):
    """The window's sizes while it is used up again and again, each eighth of it in so many seconds."""
    window, now = Window(), 1000.0
    for _ in range(count):
        eighth = window.size >> 3
        window.left -= eighth
        assert window.free(eighth)
        now += seconds
        window.give_back(backlog, 1 << 30, round_trip, now)
        assert window.left == window.size
        yield window.size


def test_the_first_window_is_smaller_beside_many_streams():
    assert {first_window(count) for count in range(1, TOGETHER // WINDOW + 1)} == {WINDOW}
    assert first_window(100) * 100 <= TOGETHER < first_window(100) * 101
    assert first_window(10_000) == LEAST


def test_the_window_grows_while_half_of_it_passes_within_a_round_trip():
    sizes = list(windows(0.1 / 8))
    assert sizes[-1] == LARGEST
    assert sizes == sorted(sizes)
    assert set(windows(0.1 / 2)) == {WINDOW}, "two round trips for half of it: something else is the limit"


def test_the_window_grows_as_long_as_the_round_trip_is_unknown():
    assert list(windows(100.0, round_trip=math.inf))[-1] == LARGEST


def test_the_window_does_not_grow_while_bytes_wait_for_the_owner():
    assert set(windows(0.0, backlog=True)) == {WINDOW}
