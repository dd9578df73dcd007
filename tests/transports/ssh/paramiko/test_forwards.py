"""``relay.transports.ssh.paramiko.forwards`` and ``requests``: who gets the streams that a server opens."""

import contextlib
import queue
import socket
import struct
import time

import paramiko
import pytest
from helpers import WAIT, Thread, closed, receive_all
from paramiko_rig import Lost, connect, settings_for

from relay.addresses.values import TCPAddress
from relay.errors import ForwardError
from relay.transports.ssh.paramiko import channel as one_channel
from relay.transports.ssh.paramiko.forwards import Dispatcher

ANY = TCPAddress("127.0.0.1", 0)

pytestmark = pytest.mark.usefixtures("spawner_thread")


@pytest.fixture
def connection(rig):
    yield from closed(connect(settings_for(rig)))


@pytest.fixture
def server(scripted):
    return scripted()


class Accepted(queue.SimpleQueue):
    """Takes what a listener accepts."""

    def __call__(self, stream, peer):
        stream.socket.settimeout(WAIT)
        self.put((stream, peer))

    def next(self):
        return self.get(timeout=WAIT)


def listen(connection, place=ANY, seconds=WAIT):
    accepted = Accepted()
    return connection.listen(place, accepted, time.monotonic() + seconds), accepted


def client_of(place):
    return socket.create_connection((place.host, place.port), WAIT)


def test_a_callback_that_fails_ends_its_own_stream(connection, caplog):
    def accepted(stream, peer):
        raise RuntimeError("not ours")

    place = connection.listen(ANY, accepted, time.monotonic() + WAIT)
    with client_of(place) as client:
        assert receive_all(client) == b""
    assert "not ours" in caplog.text
    other, good = listen(connection)
    with client_of(other), good.next()[0]:
        pass


# A server that says what the test wants.


def incoming(server, port, sender=5, *, address="127.0.0.1", kind="forwarded-tcpip", origin="192.0.2.7"):
    server.send(90, kind, sender, 1 << 20, 32768, address, port, origin, 4711)


@pytest.mark.parametrize(
    ("said", "peer"),
    [
        ("1.2.3.4\x1b[2J\x1b]0;pwn\x07\r\n12:00:00 WARNING forged\u202e\x9b31m", "unknown"),
        ("x" * 256, "unknown"),
        ("2001:db8::1", "2001:db8::1"),
        ("host.example", "host.example"),
    ],
)
def test_what_a_server_says_of_its_clients_is_fit_for_a_log(server, said, peer):
    with contextlib.closing(server.connect()) as connection:
        listening = Thread(lambda: listen(connection, TCPAddress("127.0.0.1", 7000)))
        server.expect(80)
        server.send(81)
        _, accepted = listening.result()
        incoming(server, 7000, origin=said)
        server.expect(91)
        stream, told = accepted.next()
        assert told == (peer, 4711)
        stream.close()


def test_a_stream_for_a_port_that_nobody_knows_yet_is_held(server):
    with contextlib.closing(server.connect()) as connection:
        listening = Thread(lambda: listen(connection))
        server.expect(80)
        incoming(server, 7001, 5)
        incoming(server, 7002, 6)
        server.send(81, 7001)
        place, accepted = listening.result()
        assert place.port == 7001
        assert server.expect(91)[:4] == b"\0\0\0\5"
        assert server.expect(92)[:8] == struct.pack(">II", 6, 1)
        accepted.next()[0].close()
        incoming(server, 7003, 7)
        server.expect(96)
        server.expect(97)
        assert server.expect(92)[:8] == struct.pack(">II", 7, 1)


def granted(server, connection, port, place=ANY):
    listening = Thread(lambda: listen(connection, place))
    server.expect(80)
    server.send(81, port)
    return listening.result()


def test_a_stream_for_port_0_is_of_the_only_one_who_asked_for_it(server, caplog):
    """As Twisted Conch announces it, whatever port it has chosen."""
    with contextlib.closing(server.connect()) as connection:
        granted(server, connection, 0, TCPAddress("127.0.0.1", 7000))
        _, accepted = granted(server, connection, 7001)
        granted(server, connection, 7002, TCPAddress("::1", 0))
        incoming(server, 0)
        server.expect(91)
        accepted.next()[0].close()
        server.expect(96)
        server.expect(97)
        assert not caplog.records
        granted(server, connection, 7003)
        for sender in (6, 7):
            incoming(server, 0, sender)
            assert server.expect(92)[:8] == struct.pack(">II", sender, 1), "whose it is cannot be known"
        (line,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        assert ": 127.0.0.1:0: rejected a stream: relay did not request" in line


def test_a_stream_that_comes_while_its_place_is_taken_back_is_no_warning(server, caplog):
    with contextlib.closing(server.connect()) as connection:
        place, _ = granted(server, connection, 7001)
        stopping = Thread(connection.stop_listening, place)
        server.expect(80)
        incoming(server, 7001)
        server.expect(92)
        server.send(81)
        stopping.result()
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


def test_a_flood_of_streams_that_are_held_is_bounded(server, monkeypatch):
    monkeypatch.setattr("relay.transports.ssh.paramiko.forwards._HELD", 3)
    with contextlib.closing(server.connect()) as connection:
        listening = Thread(lambda: listen(connection))
        server.expect(80)
        for sender in range(5):
            incoming(server, 7100 + sender, sender)
        for sender in (3, 4, 0, 1, 2):
            if sender == 0:
                server.send(82)
            assert server.expect(92)[:4] == struct.pack(">I", sender)
        with pytest.raises(ForwardError):
            listening.result()


def test_what_nobody_asked_for_is_refused(server):
    lost = Lost()
    with contextlib.closing(server.connect(lost)):
        incoming(server, 7000)
        assert server.expect(92)[:8] == struct.pack(">II", 5, 1)
        for kind in (
            "session",
            "x11",
            "auth-agent@openssh.com",
            "forwarded-streamlocal@openssh.com",
            "direct-tcpip",
            "",
        ):
            server.send(90, kind, 9, 1000, 1000, "127.0.0.1", 7000, "127.0.0.1", 1)
            assert server.expect(92)[:8] == struct.pack(">II", 9, 1)
        server.transport._send_message(paramiko.Message(b"\x5a\0\0"))
        server.expect(92)
    assert lost.empty()


@pytest.mark.parametrize("answer", [(), (0,), (70_000,)])
def test_a_port_that_is_none(server, answer):
    with contextlib.closing(server.connect()) as connection:
        listening = Thread(lambda: listen(connection))
        server.expect(80)
        server.send(81, *answer)
        with pytest.raises(ForwardError):
            listening.result()


def test_answers_come_in_the_order_of_asking(server):
    with contextlib.closing(server.connect()) as connection:
        one = Thread(lambda: listen(connection, TCPAddress("127.0.0.1", 7001)))
        server.expect(80)
        two = Thread(lambda: listen(connection, TCPAddress("127.0.0.1", 7002)))
        server.expect(80)
        server.send(81)
        server.send(82)
        assert one.result()[0].port == 7001
        with pytest.raises(ForwardError, match="7002"):
            two.result()
        for _ in range(3):
            server.send(81)
            server.send(82)  # which answers no request
        connection.check()
        assert b"keepalive@openssh.com" in server.expect(80)


def test_no_descriptors_left(server, monkeypatch):
    with contextlib.closing(server.connect()) as connection:
        listening = Thread(lambda: listen(connection, TCPAddress("127.0.0.1", 7000)))
        server.expect(80)
        server.send(81)
        _, accepted = listening.result()

        def none_left(**_):
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(one_channel.socket, "socketpair", none_left)
            incoming(server, 7000)
            assert server.expect(92)[:8] == struct.pack(">II", 5, 4)
        incoming(server, 7000, 6)
        server.expect(91)
        accepted.next()[0].close()


# The dispatcher alone.


class FakeTransport:
    def __init__(self):
        self.before = []
        self._handler_table = {90: lambda message: self.before.append(message.get_string())}

    def open(self, host, port, kind="forwarded-tcpip"):
        message = paramiko.Message()
        for part in (kind, 1, 2, 3, host, port, "peer", 4):
            message.add_int(part) if isinstance(part, int) else message.add_string(part)
        message.rewind()
        self._handler_table[90](message)


def test_a_dispatcher_knows_a_port_by_another_address_if_it_is_ours_alone():
    transport, one, two = FakeTransport(), [], []
    dispatcher = Dispatcher(transport)
    dispatcher.add(TCPAddress("", 80), one.append)
    transport.open("0.0.0.0", 80)
    assert len(one) == 1
    dispatcher.add(TCPAddress("::1", 80), two.append)
    transport.open("0.0.0.0", 80)
    transport.open("::1", 80)
    assert len(one) == 1 and len(two) == 1 and len(transport.before) == 1
