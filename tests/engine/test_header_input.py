"""The header of a client of a balancer: it is read to its end and no further, in as many pieces as it comes."""

import socket

import pytest
from flow_bench import HandLoop
from helpers import makes

from relay.access.proxy_header import Address, HeaderReader, ProxyHeader, ProxyHeaderError, build_v1
from relay.engine.header_input import HeaderInput

LINE = build_v1(Address("192.0.2.7", 5), Address("198.51.100.1", 443))
NOW = 12.5
ENDED = "the connection has ended within the header"


class Reading:
    """A reader of the bytes of a client, and what it has reported."""

    def __init__(self, client):
        self.loop, self.client, self.reported = HandLoop(), client, []
        self.reader = HeaderInput(client, self.loop, lambda *report: self.reported.append(report))

    def begin(self):
        """Begin, and turn until there are no more events; return the only report, or ``None``."""
        self.reader.begin(NOW)
        return self.rest()

    def rest(self):
        while self.loop.turn(NOW):
            pass
        is_watched = self.client.fileno() in self.loop.handlers
        assert is_watched is not bool(self.reported)
        if is_watched:
            return None
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
def make():
    yield from makes(Reading, lambda made: made.loop.close())


def test_a_header_that_has_come_is_read_and_nothing_after_it(make, ends):
    ends[1].sendall(LINE + b"GET")
    header = make(ends[0]).begin()
    assert isinstance(header, ProxyHeader)
    assert (header.source, header.destination) == (("192.0.2.7", 5), ("198.51.100.1", 443))
    assert ends[0].recv(10) == b"GET"


def test_a_header_may_come_in_pieces(make, ends):
    reading = make(ends[0])
    assert reading.begin() is None
    assert not reading.reader.begun
    reading.reader.on_event(0, NOW)  # a wake-up without a byte
    assert (reading.rest(), reading.reader.begun) == (None, False)
    for byte in LINE[:-1]:
        ends[1].sendall(bytes([byte]))
        assert reading.rest() is None
        assert reading.reader.begun
    ends[1].sendall(LINE[-1:])
    assert reading.rest().destination == ("198.51.100.1", 443)


@pytest.mark.parametrize(("sent", "problem"), [(b"", ENDED), (b"PROXY TCP4 ", ENDED), (b"GET / HTTP/1.1\r\n\r\n", "")])
def test_a_client_without_a_header_is_rejected(make, ends, sent, problem):
    ends[1].sendall(sent)
    ends[1].shutdown(socket.SHUT_WR)
    outcome = make(ends[0]).begin()
    assert isinstance(outcome, ProxyHeaderError)
    assert problem in str(outcome)


class OtherReader:
    """A socket from which other code reads after each look at it."""

    def __init__(self, sock):
        self.sock, self.sizes = sock, []

    def fileno(self):
        return self.sock.fileno()

    def recv(self, size, flags=0):
        self.sizes.append(size)
        return self.sock.recv(size if flags else size - 1, flags)


def test_bytes_that_other_code_has_read_are_an_error(make, ends):
    other = OtherReader(ends[0])
    ends[1].sendall(LINE)
    assert isinstance(make(other).begin(), ConnectionResetError)
    assert other.sizes == [4096, len(LINE)], "a look takes no more than a piece"


def test_the_error_of_the_socket_is_reported(make, ends):
    ends[0].send(b"unread")
    ends[1].close()
    assert isinstance(make(ends[0]).begin(), ConnectionResetError)


def test_a_bug_rejects_the_client(make, ends, caplog, monkeypatch):
    monkeypatch.setattr(HeaderReader, "feed", lambda reader, data: 1 / 0)
    ends[1].sendall(LINE)
    outcome = make(ends[0]).begin()
    assert isinstance(outcome, ProxyHeaderError)
    assert str(outcome) == "a bug in relay; the log has it"
    assert "this is a bug in relay" in caplog.text
