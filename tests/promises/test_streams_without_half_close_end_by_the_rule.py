"""An end that must be written to a stream without half-close is held back; one read from it is the end of both."""

import select
import socket
import threading
import time

import pytest
from helpers import BLOCK, WAIT, Bare, ended, ending, expire, receive_all, receive_exactly, send_and_end, wait_until

import relay
from relay.engine import limits as limits_module
from relay.testing import FakeListener, pair


def stream_without(target):
    return relay.Stream(socket.create_connection(target), half_close=False)


def bare(target):
    return Bare(socket.create_connection(target))


@pytest.fixture(params=[stream_without, bare])
def one_way_out(request, relayed):
    """A tunnel to a target behind a stream that has no half-close."""
    rigs = []

    def make(**limits):
        # the factory needs the target's address, which exists once the rig does
        rigs.append(relayed(lambda: request.param(rigs[0].target.getsockname()), **limits))
        return rigs[0]

    return make


def readable(end, seconds):
    return bool(select.select([end], [], [], seconds)[0])


def test_a_request_with_an_end_gets_its_answer(one_way_out):
    rig = one_way_out()
    client, far = rig.connect()
    send_and_end(client, b"request")
    assert receive_exactly(far, 7) == b"request"
    assert not readable(far, 0.3), "the end must be held back while the answer may still come"
    far.sendall(BLOCK)
    far.close()
    assert receive_all(client) == BLOCK
    assert ended(rig.tunnel) == ["done"]


def test_linger_is_how_long_a_silent_target_keeps_the_end_back(one_way_out):
    rig = one_way_out(linger=0.3)
    client, far = rig.connect()
    begin = time.monotonic()
    send_and_end(client, b"request")
    assert receive_exactly(far, 7) == b"request"
    ending(far)
    assert time.monotonic() - begin >= 0.3
    assert ended(rig.tunnel)[0] in ("linger", "done")


def test_an_answer_in_pieces_is_not_cut_by_linger(one_way_out):
    rig = one_way_out(timeout=None, linger=1000)
    client, far = rig.connect()
    send_and_end(client, b"request")
    assert receive_exactly(far, 7) == b"request"
    wait_until(lambda: rig.tunnel.connections()[0].state == "half-closed")
    for piece in range(6):
        moment = time.monotonic()
        far.sendall(bytes([piece]))
        assert client.recv(10) == bytes([piece])
        expire(rig.tunnel, moment + 1000)
    far.close()
    assert receive_all(client) == b""
    assert ended(rig.tunnel) == ["done"]


def test_the_end_of_such_a_stream_is_the_end_of_both_directions(one_way_out):
    rig = one_way_out(linger=30)
    client, far = rig.connect()
    client.sendall(b"request")
    assert receive_exactly(far, 7) == b"request"
    far.sendall(b"answer")
    far.close()
    assert receive_all(client) == b"answer"
    for _ in range(3):  # what is still said has nowhere to go, and must not turn a clean end into a reset
        client.sendall(b"late")
        threading.Event().wait(0.05)
    client.close()
    assert ended(rig.tunnel) == ["done"]


@pytest.fixture
def one_way_in(listener):
    """A tunnel whose clients come on streams that have no half-close; returns a client and its far end."""
    fake = FakeListener()
    opened = []

    def make(tunnel):
        client, near = pair(socket.AF_INET)
        fake.put(relay.Stream(near, half_close=False))
        far = listener.accept()[0]
        opened.extend((client, far))
        for end in (client, far):
            end.settimeout(WAIT)
        return client, far

    with relay.Tunnel(fake, relay.tcp(*listener.getsockname()), timeout=None, linger=None) as tunnel:
        yield tunnel, make
    for end in opened:
        end.close()


@pytest.fixture
def quiet(monkeypatch):
    """The quiet second of the rule, for as long as no machine is busy."""
    monkeypatch.setattr(limits_module, "_QUIET", 1000.0)
    return 1000.0


def test_an_upload_under_way_is_not_cut_by_the_targets_end(one_way_in, quiet):
    tunnel, connect = one_way_in
    client, far = connect(tunnel)
    client.sendall(b"first")
    assert receive_exactly(far, 5) == b"first"
    far.shutdown(socket.SHUT_WR)
    wait_until(lambda: tunnel.connections()[0].state == "half-closed")
    for piece in range(8):
        moment = time.monotonic()
        client.sendall(bytes([piece]))
        assert far.recv(10) == bytes([piece])
        expire(tunnel, moment + quiet)
    client.close()
    assert receive_all(far) == b""
    assert ended(tunnel) == ["done"]


def test_after_a_quiet_second_the_targets_end_is_passed_on_at_once(one_way_in, quiet, monkeypatch):
    monkeypatch.setattr(limits_module, "_BEFORE_EOF", 0.0)
    tunnel, connect = one_way_in
    client, far = connect(tunnel)
    client.sendall(b"request")
    assert receive_exactly(far, 7) == b"request"
    (connection,) = tunnel._relay._slots.connections
    connection.flows.upstream.last -= quiet
    far.sendall(b"answer")
    far.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b"answer", "nothing came in the last second: no reason to hold the end"


def test_a_recent_request_holds_the_targets_end_for_a_second(one_way_in, quiet):
    tunnel, connect = one_way_in
    client, far = connect(tunnel)
    moment = time.monotonic()
    client.sendall(b"request")
    assert receive_exactly(far, 7) == b"request"
    send_and_end(far, b"answer")
    assert receive_exactly(client, 6) == b"answer"
    wait_until(lambda: tunnel.connections()[0].state == "half-closed")
    expire(tunnel, moment + quiet)
    assert not readable(client, 0.1), "the upload may still be under way"
    expire(tunnel, time.monotonic() + quiet)
    assert ending(client) == "end of file"


def test_the_targets_end_comes_a_while_after_its_last_byte(one_way_in, monkeypatch):
    monkeypatch.setattr(limits_module, "_BEFORE_EOF", 1000.0)
    tunnel, connect = one_way_in
    client, far = connect(tunnel)
    moment = time.monotonic()
    send_and_end(far, b"all")
    assert receive_exactly(client, 3) == b"all"
    wait_until(lambda: tunnel.connections()[0].state == "half-closed")
    expire(tunnel, moment + 1000.0)
    assert not readable(client, 0.1), "a router of I2P may lose an end that comes with the last byte"
    expire(tunnel, time.monotonic() + 1000.0)
    assert ending(client) == "end of file"
    assert ended(tunnel) == ["done"]


def test_the_end_of_a_second_comes_by_itself(one_way_in):
    tunnel, connect = one_way_in
    client, far = connect(tunnel)
    client.sendall(b"request")
    assert receive_exactly(far, 7) == b"request"
    send_and_end(far, b"answer")
    assert receive_all(client) == b"answer"
    assert ended(tunnel) == ["done"]


def test_an_ssl_socket_keeps_the_answer(relayed, certificates):
    def make():
        plain = socket.create_connection(rig.target.getsockname())
        return certificates.client().wrap_socket(plain, server_hostname="localhost")

    rig = relayed(make, way_out="tls")
    client, far = rig.connect()
    send_and_end(client, b"request")
    assert receive_exactly(far, 7) == b"request"
    assert not readable(far, 0.3), "its shutdown would drop the encryption"
    far.sendall(BLOCK)
    far.shutdown(socket.SHUT_WR)
    far.close()
    assert receive_all(client) == BLOCK
    assert ended(rig.tunnel) == ["done"]
