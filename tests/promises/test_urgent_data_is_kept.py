"""TCP's urgent byte arrives as an urgent one, at its place in the stream; where there is none such, as a plain byte."""

import fcntl
import resource
import select
import socket
import sys
import threading

import pytest
from helpers import BLOCK, WAIT, Thread, ended, exchange, receive_all, receive_exactly, send_all, send_and_end

import relay

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="this machine has no urgent data that comes in line")

BULK = BLOCK * 4
MUCH = BLOCK * 32  # more than all the buffers on the way hold, as a rule: the kernel lets them grow
LIMITS = {"bandwidth": [{"per": "tunnel", "bandwidth": "20MB/s"}], "quota": [{"per": "tunnel", "quota": "100MB/day"}]}


def send_urgent(end, byte=b"!"):
    assert end.send(byte, socket.MSG_OOB) == 1


def in_line(end):
    """See to it that urgent bytes come in line; before the second one, or the first one is lost to the receiver."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def receive_some(end):
    """Bytes up to the mark of urgent data, or that one byte; and whether it was urgent. No bytes at the end."""
    in_line(end)
    poller = select.poll()
    poller.register(end, select.POLLIN)
    assert poller.poll(WAIT * 1000), "nothing came"
    is_urgent = any(fcntl.ioctl(end, 0x8905, bytes(4)))  # SIOCATMARK
    return end.recv(1 if is_urgent else 1 << 16), is_urgent


def receive_with_marks(end):
    """Everything up to the end of file, and the places of the urgent bytes."""
    data, marks = bytearray(), []
    while True:
        piece, is_urgent = receive_some(end)
        if not piece:
            return bytes(data), marks
        if is_urgent:
            marks.append(len(data))
        data += piece


def is_same(data, sent):
    """Compare in a way that a failure does not show megabytes."""
    return data == sent


def fill(end):
    """Send as much as all buffers on the way take; returns how much."""
    sent = 0
    end.setblocking(False)
    poller = select.poll()
    poller.register(end, select.POLLOUT)
    while sent < len(MUCH) and poller.poll(500):
        sent += end.send(MUCH[sent : sent + 65536])
    end.settimeout(WAIT)
    return sent


@pytest.fixture(params=["from the client", "from the target"])
def rig(request, relayed, any_engine):
    """Makes a tunnel; returns the ends that send and receive, the tunnel, and what the engine has."""

    def make(**options):
        made = relayed(**options)
        client, far = made.connect()
        exchange(client, far)
        sender, receiver = (client, far) if request.param == "from the client" else (far, client)
        in_line(receiver)
        return sender, receiver, made.tunnel

    return make


def test_the_mark_is_at_its_place(rig):
    sender, receiver, tunnel = rig()
    sender.sendall(b"before ")
    send_urgent(sender)
    send_and_end(sender, b"after")
    assert receive_with_marks(receiver) == (b"before !after", [7])
    send_and_end(receiver, b"")
    assert receive_all(sender) == b""
    assert ended(tunnel) == ["done"]


@pytest.mark.parametrize("after", [b"", b"after"])
def test_alone_it_comes_at_once(rig, after):
    sender, receiver, _tunnel = rig()
    for byte in (b"1", b"2", b"3"):
        send_urgent(sender, byte)
        assert receive_some(receiver) == (byte, True)
    send_and_end(sender, after)
    assert receive_with_marks(receiver) == (after, [])


def test_it_may_be_the_last_byte(rig):
    sender, receiver, tunnel = rig()
    sender.sendall(b"before ")
    send_urgent(sender)
    send_and_end(sender, b"")
    assert receive_with_marks(receiver) == (b"before !", [7])
    receiver.sendall(b"answer")
    assert receive_exactly(sender, 6) == b"answer"
    send_and_end(receiver, b"")
    assert ended(tunnel) == ["done"]


def test_between_bulk(rig, any_engine):
    sender, receiver, tunnel = rig()
    receiving = Thread(receive_with_marks, receiver)
    for byte in (b"!", b"?"):
        send_all(sender, BULK)
        send_urgent(sender, byte)
    send_and_end(sender, BULK)
    data, marks = receiving.result()
    assert is_same(data, BULK + b"!" + BULK + b"?" + BULK)
    # TCP has one mark, which is that of the last urgent byte while both are on the way.
    assert marks in ([len(BULK), 2 * len(BULK) + 1], [2 * len(BULK) + 1])
    send_and_end(receiver, b"")
    assert ended(tunnel) == ["done"]
    assert tunnel.recent()[-1].engine == ("copy" if any_engine == "no splice" else "splice")


def test_while_the_receiver_reads_nothing(rig):
    sender, receiver, _tunnel = rig()
    sent = fill(sender)

    def go_on():
        send_urgent(sender)
        send_and_end(sender, b"after")

    sending = Thread(go_on)
    data, marks = receive_with_marks(receiver)
    assert is_same(data, MUCH[:sent] + b"!after")
    assert marks == [sent]
    sending.result()


@pytest.mark.parametrize("limit", LIMITS)
def test_with_limits_of_clients(rig, limit):
    sender, receiver, tunnel = rig(limit=LIMITS[limit])
    receiving = Thread(receive_with_marks, receiver)
    send_all(sender, BULK)
    send_urgent(sender)
    send_and_end(sender, BULK)
    data, marks = receiving.result()
    assert is_same(data, BULK + b"!" + BULK)
    assert marks == [len(BULK)]
    send_and_end(receiver, b"")
    assert ended(tunnel) == ["done"]


@pytest.mark.parametrize("before", [b"", b"before"])
def test_while_a_meter_has_nothing(rig, before):
    """The connection waits for its bandwidth when the urgent byte comes."""
    sender, receiver, tunnel = rig(limit=[{"per": "tunnel", "bandwidth": "100kB/s"}])
    send_all(sender, BLOCK[:100_000])
    receive_exactly(receiver, 100_000)
    sender.sendall(before)
    send_urgent(sender)
    send_and_end(sender, b"after")
    assert receive_with_marks(receiver) == (before + b"!after", [len(before)])
    send_and_end(receiver, b"")
    assert ended(tunnel) == ["done"]


def test_after_the_other_direction_has_ended(rig):
    sender, receiver, _tunnel = rig()
    send_and_end(receiver, b"")
    assert receive_all(sender) == b""
    sender.sendall(b"before ")
    send_urgent(sender)
    send_and_end(sender, b"after")
    assert receive_with_marks(receiver) == (b"before !after", [7])


def test_two_in_a_row(relayed, any_engine):
    """TCP has one mark: the first byte becomes a plain one. The mark is known when the last byte has come."""
    client, far = relayed().connect()
    in_line(far)
    exchange(client, far)
    for byte in (b"1", b"2"):
        send_urgent(client, byte)
    client.shutdown(socket.SHUT_WR)
    data, marks = receive_with_marks(far)
    assert data == b"12"
    assert marks in ([0, 1], [1])


def test_many_into_full_buffers(relayed, any_engine):
    """An urgent byte waits for room as any other does."""
    client, far = relayed().connect()
    in_line(far)
    exchange(client, far)
    sent, piece = fill(client), BLOCK[:65536]

    def go_on():
        for _ in range(32):
            send_urgent(client)
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)

    sending = Thread(go_on)
    data, marks = receive_with_marks(far)
    assert is_same(data, MUCH[:sent] + (b"!" + piece) * 32)
    assert marks
    assert {(mark - sent) % (1 + len(piece)) for mark in marks} == {0}
    sending.result()


@pytest.mark.parametrize("before", [b"", b"before "])
def test_before_the_target_is_connected(relayed, any_engine, listener, before):
    opening = threading.Event()

    def factory():
        assert opening.wait(WAIT)
        return relay.tcp(*listener.getsockname())()

    rig = relayed(factory)
    client = rig.client()
    client.sendall(before)
    send_urgent(client)
    client.sendall(b"after")
    opening.set()
    with listener.accept()[0] as far:
        client.shutdown(socket.SHUT_WR)
        assert receive_with_marks(far) == (before + b"!after", [len(before)])


@pytest.mark.parametrize(
    ("way_in", "way_out"), [("tcp", "unix"), ("unix", "tcp"), ("tcp", "tls"), ("tls", "tcp"), ("unix", "tls")]
)
def test_it_is_a_plain_byte_of_other_streams(relayed, any_engine, way_in, way_out):
    client, far = relayed(way_in=way_in, way_out=way_out).connect()
    exchange(client, far)
    for sender, receiver, way in ((client, far, way_in), (far, client, way_out)):
        if way == "tcp":
            sender.sendall(b"before ")
            send_urgent(sender)
            sender.sendall(b"after")
            assert receive_exactly(receiver, 13) == b"before !after"
            send_urgent(sender)
            assert receive_exactly(receiver, 1) == b"!"
        else:
            sender.sendall(b"plain")
            assert receive_exactly(receiver, 5) == b"plain"


def test_it_is_a_plain_byte_of_a_stream_without_half_close(relayed, any_engine, listener):
    """Such as one of I2P: TCP leads only to its router."""

    def factory():
        return relay.Stream(socket.create_connection(listener.getsockname()), half_close=False)

    client = relayed(factory).client()
    with listener.accept()[0] as far:
        far.settimeout(WAIT)
        exchange(client, far)
        client.sendall(b"before ")
        send_urgent(client)
        client.sendall(b"after")
        assert receive_exactly(far, 13) == b"before !after"
        far.sendall(b"before ")
        send_urgent(far)
        send_and_end(far, b"after")
        assert receive_with_marks(client) == (b"before !after", [7])


@pytest.mark.parametrize("way_in", ["tls", "unix"])
def test_a_byte_beside_another_stream_is_lost(relayed, any_engine, way_in):
    """Bytes out of band, beside the records of TLS or over a Unix socket, are no part of the stream."""
    client, far = relayed(way_in=way_in).connect()
    exchange(client, far)
    client.sendall(b"before ")
    assert receive_exactly(far, 7) == b"before "
    send_urgent(client.socket if way_in == "tls" else client)
    client.sendall(b"after")
    assert receive_exactly(far, 5) == b"after"
    exchange(client, far)


@pytest.mark.parametrize(("way_in", "way_out"), [("tcp", "tcp"), ("tcp", "unix"), ("tls", "tcp"), ("unix", "tcp")])
@pytest.mark.parametrize("before", [b"", b"before"])
def test_nothing_spins(relayed, any_engine, way_in, way_out, before):
    client, far = relayed(way_in=way_in, way_out=way_out).connect()
    exchange(client, far)
    client.sendall(before)
    send_urgent(client.socket if way_in == "tls" else client)
    begin = resource.getrusage(resource.RUSAGE_SELF)
    threading.Event().wait(0.5)
    end = resource.getrusage(resource.RUSAGE_SELF)
    assert end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime < 0.25, "something spins"
