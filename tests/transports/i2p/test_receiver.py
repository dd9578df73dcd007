"""``relay.transports.i2p.receiver``: traffic of clients; :mod:`test_listener` has the choice of FORWARD or ACCEPT."""

from __future__ import annotations

import os
import socket
import struct
import time

from helpers import wait_until

from relay.transports.i2p import receiver
from relay.transports.i2p.receiver import Traffic, seconds_idle


def pass_a_byte(near, far):
    near.sendall(b"x")
    assert far.recv(1) == b"x"


def connected():
    """Return both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        return near, listening.accept()[0]


def test_the_idle_time_counts_from_the_last_byte():
    near, far = connected()
    with near, far:
        pass_a_byte(near, far)
        wait_until(lambda: seconds_idle(far) > 0.1)
        begun = time.monotonic()
        pass_a_byte(near, far)
        assert seconds_idle(far) <= time.monotonic() - begun + 0.01, "the kernel counts milliseconds"
    assert seconds_idle(far) == float("inf"), "it is closed"


def test_only_tcp_has_an_idle_time():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert seconds_idle(ours) == float("inf")


def test_traffic_is_a_new_stream_or_bytes_of_an_open_one():
    traffic = Traffic()
    near, far = connected()
    with near, far:
        assert not traffic.since(time.monotonic())
        begun = time.monotonic()
        traffic.add(far)
        assert traffic.since(begun)
        wait_until(lambda: seconds_idle(far) > 0.05)
        later = time.monotonic()
        wait_until(lambda: time.monotonic() > later + 0.02)
        assert not traffic.since(later)
        pass_a_byte(near, far)
        assert traffic.since(later)


def test_the_place_of_the_time_in_what_the_kernel_tells():
    """linux/tcp.h: eight bytes, then words of 32 bits, of which tcpi_last_data_recv is the twelfth."""
    assert receiver._LAST.size == 8 + 4 * 12
    assert receiver._LAST.unpack(bytes(52) + struct.pack("=I", 7)) == (7,)
    assert os.name == "posix"
