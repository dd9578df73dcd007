"""The header of a client of a balancer: it is read to its end and no further, in as many pieces as it comes."""

from __future__ import annotations

import socket

import pytest

from relay.access.proxy_header import Address, ProxyHeader, ProxyHeaderError, build_v1
from relay.engine.header_input import _PIECE, HeaderInput
from relay.eventloop.poller import READ

LINE = build_v1(Address("192.0.2.7", 5), Address("198.51.100.1", 443))
NOW = 12.5


class Loop:
    """A loop that notes what it watches."""

    def __init__(self):
        self.handlers = {}

    def watch(self, descriptor, mask, handler):
        self.handlers[descriptor] = mask, handler

    def forget(self, descriptor):
        del self.handlers[descriptor]


class Reading:
    """A reader of the bytes of a client, and what it has reported."""

    def __init__(self, client):
        self.loop, self.client, self.reported = Loop(), client, []
        self.reader = HeaderInput(client, self.loop, lambda *report: self.reported.append(report))

    @property
    def is_watched(self):
        return list(self.loop.handlers.items()) == [(self.client.fileno(), (READ, self.reader.on_event))]

    @property
    def outcome(self):
        """The only report, after which nothing is watched."""
        assert not self.loop.handlers
        ((outcome, now),) = self.reported
        assert now == NOW
        return outcome


@pytest.fixture
def ends():
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        yield near, far


@pytest.fixture
def reading(ends):
    return Reading(ends[0])


def test_a_header_that_has_come_is_read_at_once_and_nothing_after_it(reading, ends):
    ends[1].sendall(LINE + b"GET")
    reading.reader.begin(NOW)
    assert isinstance(reading.outcome, ProxyHeader)
    assert reading.outcome.source == ("192.0.2.7", 5)
    assert ends[0].recv(10) == b"GET"


def test_a_header_may_come_in_pieces(reading, ends):
    reading.reader.begin(NOW - 1)
    assert not reading.reader.begun
    for byte in LINE[:-1]:
        ends[1].sendall(bytes([byte]))
        reading.reader.on_event(READ, NOW - 1)
        assert reading.reader.begun
        assert reading.is_watched
        assert not reading.reported
    ends[1].sendall(LINE[-1:])
    reading.reader.on_event(READ, NOW)
    assert reading.outcome.destination == ("198.51.100.1", 443)


def test_a_wake_up_without_a_byte_changes_nothing(reading):
    reading.reader.begin(NOW)
    reading.reader.on_event(READ, NOW)
    assert reading.is_watched
    assert (reading.reported, reading.reader.begun) == ([], False)


@pytest.mark.parametrize("before", [b"", b"PROXY TCP4 "])
def test_a_client_that_ends_within_its_header_is_rejected(reading, ends, before):
    ends[1].sendall(before)
    ends[1].shutdown(socket.SHUT_WR)
    reading.reader.begin(NOW)
    if before:
        assert reading.is_watched
        reading.reader.on_event(READ, NOW)
    assert isinstance(reading.outcome, ProxyHeaderError)
    assert str(reading.outcome) == "the connection has ended within the header"


def test_what_is_no_header_is_rejected(reading, ends):
    ends[1].sendall(b"GET / HTTP/1.1\r\n\r\n")
    reading.reader.begin(NOW)
    assert isinstance(reading.outcome, ProxyHeaderError)


class OtherReader:
    """A socket from which other code reads after each look at it."""

    def __init__(self, sock, seen):
        self.sock, self.seen = sock, seen

    def fileno(self):
        return self.sock.fileno()

    def recv(self, size, flags=0):
        return self.seen if flags else self.seen[: size - 1]


def test_bytes_that_other_code_has_read_are_an_error(ends):
    reading = Reading(OtherReader(ends[0], LINE))
    reading.reader.begin(NOW)
    assert isinstance(reading.outcome, ConnectionResetError)


def test_the_error_of_the_socket_is_reported(reading, ends):
    class Lost(OtherReader):
        def recv(self, size, flags=0):
            raise ConnectionResetError("lost")

    reading = Reading(Lost(ends[0], b""))
    reading.reader.begin(NOW)
    assert isinstance(reading.outcome, ConnectionResetError)
    assert str(reading.outcome) == "lost"


def test_a_look_takes_no_more_than_a_piece(ends):
    sizes = []

    class Sized(OtherReader):
        def recv(self, size, flags=0):
            sizes.append((size, flags))
            return self.seen[:size]

    Reading(Sized(ends[0], LINE)).reader.begin(NOW)
    assert sizes == [(_PIECE, socket.MSG_PEEK), (len(LINE), 0)]


def test_a_bug_rejects_the_client(reading, ends, caplog, monkeypatch):
    monkeypatch.setattr(reading.reader, "_reader", None)
    ends[1].sendall(LINE)
    reading.reader.begin(NOW)
    assert isinstance(reading.outcome, ProxyHeaderError)
    assert str(reading.outcome) == "a bug in relay; the log has it"
    assert "this is a bug in relay" in caplog.text
