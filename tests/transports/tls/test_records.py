"""``relay.transports.tls.records``: two ends over a socketpair, without a loop."""

import socket
import ssl

import pytest

from relay.eventloop.background import BUFFER
from relay.eventloop.poller import IN
from relay.transports.tls.records import Records, TLSError, is_denial


@pytest.fixture
def ends(certificates):
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        client = Records(near, ssl.create_default_context(cafile=certificates.ca), "localhost")
        yield client, Records(far, certificates.server())


def shake(client, server):
    assert client.handshake(readable=False) == IN
    while True:
        if server.handshake(readable=True) == 0 and client.handshake(readable=True) == 0:
            return
        client.handshake(readable=True)


def test_a_handshake_and_data_and_an_end(ends):
    client, server = ends
    shake(client, server)
    assert client.begun and server.begun
    client.tls.write(b"hello")
    client.send_end()
    assert client.flush() and client.moved > 0 and client.progress() <= client.moved
    buffer = memoryview(bytearray(1 << 16))
    assert server.receive(buffer)
    assert server.tls.read(5) == b"hello"
    assert server.tls.read(5) == b""


def test_a_certificate_that_is_not_trusted_is_an_alert(ends, certificates):
    client, server = ends
    stranger = Records(client._transport, ssl.create_default_context(), "localhost")
    stranger.handshake(readable=False)
    server.handshake(readable=True)
    with pytest.raises(ssl.SSLCertVerificationError):
        stranger.handshake(readable=True)
    with pytest.raises(ssl.SSLError) as failure:
        server.handshake(readable=True)
    assert is_denial(failure.value)
    assert TLSError("x", reason="denied").reason == "denied"


def steps(records, buffer):
    """Take all that is there, and return the sizes of the steps."""
    found = []
    while True:
        try:
            found.append(records.receive(buffer))
        except BlockingIOError:
            return found
        records.decrypt(buffer)


@pytest.fixture
def wide():
    """Ends whose transport holds a lot."""
    near, far = socket.socketpair()
    with near, far:
        for one in (near, far):
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        yield near, far


def test_bulk_grows_the_steps_and_a_flood_of_small_records_ends_that(wide, certificates):
    """A step of a quarter megabyte full of key updates would take OpenSSL 0.3 s."""
    near, far = wide
    client = Records(near, ssl.create_default_context(cafile=certificates.ca), "localhost")
    server = Records(far, certificates.server())
    shake(client, server)
    buffer = memoryview(bytearray(BUFFER))
    client.tls.write(bytes(100 << 10))
    client.flush()
    bulk = steps(server, buffer)
    assert bulk[0] <= 18 << 10 < max(bulk)
    for _ in range(5000):
        client.tls.write(b"x")
    client.flush()
    flood = steps(server, buffer)
    assert 18 << 10 < flood[0] <= BUFFER
    client.tls.write(bytes(100 << 10))
    client.flush()
    assert max(steps(server, buffer)) <= 18 << 10
