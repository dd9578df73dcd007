"""``relay.transports.i2p.receiver``: traffic of clients, and local bridges; see also :mod:`test_listener`."""

import os
import socket
import struct
import time
from types import SimpleNamespace

import pytest
from helpers import WAIT, wait_until

from relay.addresses.i2p import I2PListen
from relay.streams.promise import Promise
from relay.transports.i2p import receiver
from relay.transports.i2p.receiver import Receiver, Traffic, is_local, seconds_idle


@pytest.fixture
def session(opened):
    return opened.session


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


# -- pauses --


@pytest.fixture
def there(session):
    """A receiver of the session's streams, each of whose methods runs on the I/O thread."""
    loop = session.bridge._io_thread.loop
    place = I2PListen(accept="accept")
    made = Receiver(place, "here", lambda stream, peer: stream.close(), lambda error: None)

    class There:
        def __getattr__(self, name):
            def call(*arguments, **options):
                result = Promise()
                loop.call(lambda: result.put((getattr(made, name)(*arguments, **options),)))
                return result.get(time.monotonic() + WAIT, None)[0]

            return call

    there = There()
    there.prepare(loop.timers)
    there.open(session)
    yield there
    there.close()


def test_a_pause_makes_checks_inconclusive_that_began_before_its_end(there):
    begun = time.monotonic()
    assert not there.was_paused(begun)
    there.pause()
    assert there.was_paused(begun)
    there.resume()
    assert there.was_paused(begun)
    assert not there.was_paused(time.monotonic())


def test_a_pause_ends_with_its_session(there, session):
    there.pause()
    there.shut(was_reachable=True)
    there.resume()  # the streams that waited were taken while there was no session
    there.open(session)
    assert not there.was_paused(time.monotonic())
    there.resume()
    assert not there.was_paused(time.monotonic())


# -- where the bridge is --


def test_only_a_bridge_on_the_loopback_is_local(session):
    assert is_local(session)
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket() as closed:
        far = SimpleNamespace(family=socket.AF_INET, getpeername=lambda: ("192.0.2.1", 7656))
        for control in (ours, far, closed):  # over SSH or TLS; on another machine
            assert not is_local(SimpleNamespace(control_socket=control))
