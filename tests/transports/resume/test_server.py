"""The far end, beside near ends that say what they like."""

import socket

import pytest
from helpers import echo, receive_exactly, wait_until
from resume_rig import Rig

from relay.streams.identity import Certificate, Identity
from relay.transports.resume.figures import BUDGET, FAR
from relay.transports.resume.server import key_of
from relay.transports.resume.wire import (
    CONTROL,
    DATA,
    END,
    FIN,
    KNOWN,
    NEW,
    PING,
    PONG,
    REFUSED,
    UNKNOWN,
    Decoder,
    Hello,
    frame,
    read_answer,
)


@pytest.fixture
def rig(request, tmp_path, serve):
    made = Rig(tmp_path, serve(echo).address, kept=getattr(request, "param", 30))
    yield made
    made.close()


@pytest.fixture
def carrier(rig):
    """Makes raw carriers: says something, and returns the socket and the answer."""
    made = []

    def make(said):
        one = socket.socket(socket.AF_UNIX)
        made.append(one)
        one.settimeout(30)
        one.connect(str(rig.folder / "far.sock"))
        one.sendall(said)
        data = b""
        while (found := read_answer(data)) is None:
            try:
                piece = one.recv(1)
            except ConnectionResetError:
                piece = b""
            if not piece:
                return one, None
            data += piece
        return one, found[0]

    yield make
    for one in made:
        one.close()


def request(rig):
    """Return what a client of SOCKS5 says, all at once."""
    host = socket.inet_aton(rig.target.host)
    return b"\5\1\0" + b"\5\1\0\1" + host + rig.target.port.to_bytes(2, "big")


def receive_data(one, size):
    """Return so many bytes of frames of data, and the frames."""
    decoder, data = Decoder(), b""
    while len(data) < size:
        piece = one.recv(65536)
        assert piece
        data += b"".join(bytes(part) for _, kind, part in decoder.feed(piece) if kind == DATA)
    return data


def begun(rig, carrier):
    """Begin a session whose target echoes; the far end has sent 12 bytes then."""
    one, answer = carrier(Hello(1000).encode())
    assert answer.kind == NEW
    one.sendall(frame(0, DATA, request(rig)))
    assert receive_data(one, 12)[:2] == b"\5\0"
    return one, answer.token


def test_a_stream_goes_on_where_each_end_is(rig, carrier):
    one, token = begun(rig, carrier)
    one.sendall(frame(12, DATA, b"hello"))
    assert receive_data(one, 5) == b"hello"
    one.close()
    # As if two of the five bytes had not come.
    two, answer = carrier(Hello(1000, token, 15).encode())
    assert (answer.kind, answer.received) == (KNOWN, len(request(rig)) + 5)
    assert receive_data(two, 2) == b"lo"
    wait_until(lambda: FAR.resumes == 1)


def test_it_says_how_long_it_keeps_a_session(rig, carrier):
    assert carrier(Hello(1000).encode())[1].kept == 30


def test_of_two_carriers_the_last_one_wins(rig, carrier):
    one, token = begun(rig, carrier)
    two, answer = carrier(Hello(1000, token, 12).encode())
    assert answer.kind == KNOWN
    with pytest.raises(ConnectionResetError):
        while one.recv(100):
            pass
        raise ConnectionResetError  # an end of file is as good
    two.sendall(frame(12, DATA, b"x"))
    assert receive_data(two, 1) == b"x"
    assert len(rig.listener.sessions) == 1


def test_an_unknown_token_is_refused_and_counted(rig, carrier):
    one, answer = carrier(Hello(1000, bytes(16), 0).encode())
    assert answer.kind == UNKNOWN
    assert receive_exactly(one, 1) == b""
    assert FAR.refused == 1


def test_a_token_of_another_identity_is_as_unknown(rig, carrier, monkeypatch):
    _, token = begun(rig, carrier)
    monkeypatch.setattr("relay.transports.resume.server.key_of", lambda identity: "unix:0815")
    _, answer = carrier(Hello(1000, token, 12).encode())
    assert answer.kind == UNKNOWN
    assert FAR.refused == 1
    monkeypatch.undo()
    _, answer = carrier(Hello(1000, token, 12).encode())
    assert answer.kind == KNOWN


def test_without_an_identity_there_is_no_session(rig, carrier, monkeypatch):
    monkeypatch.setattr("relay.transports.resume_server.unix.identity_of_process", lambda client: None)
    _, answer = carrier(Hello(1000).encode())
    assert (answer.kind, answer.word) == (REFUSED, "no_identity")


def acknowledge(one, position):
    """Acknowledge up to a position; returns once the far end knows."""
    one.sendall(frame(position, CONTROL, bytes((PING,))))
    decoder = Decoder()
    while not any(bytes(part) == bytes((PONG,)) for _, kind, part in decoder.feed(one.recv(65536)) if kind == CONTROL):
        pass


@pytest.mark.parametrize("position", [13, 2**40])
def test_a_position_that_cannot_be_ends_the_stream(rig, carrier, position):
    _, token = begun(rig, carrier)
    carrier(Hello(1000, token, position).encode())
    wait_until(lambda: len(rig.listener.sessions) == 0)
    wait_until(lambda: [one.reason for one in rig.tunnel.recent()] == ["client_reset"])


def test_a_greeting_that_another_one_has_overtaken_changes_nothing(rig, carrier):
    """It was on its way when the near end gave its carrier up, and comes after that of the next one."""
    one, token = begun(rig, carrier)
    acknowledge(one, 12)
    assert carrier(Hello(1000, token, 11).encode())[1] is None
    one.sendall(frame(12, DATA, b"x"))
    assert receive_data(one, 1) == b"x"
    assert FAR.resumes == 0 and [record.resumes for record in rig.tunnel.connections()] == [0]


@pytest.mark.parametrize("rig", [1], indirect=True)
def test_one_that_was_overtaken_keeps_no_session(rig, carrier):
    one, token = begun(rig, carrier)
    acknowledge(one, 12)
    one.close()
    wait_until(lambda: not any(far.joint.is_attached for far in tuple(rig.listener.sessions._sessions.values())))
    carrier(Hello(1000, token, 11).encode())
    wait_until(lambda: len(rig.listener.sessions) == 0)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.0\r\n\r\n", b"relay-resume/2\n\0", b""])
def test_what_is_no_near_end_is_let_go(rig, carrier, said):
    if said:
        _, answer = carrier(said)
        assert answer is None
    assert len(rig.listener.sessions) == 0


def test_a_last_word_that_was_missed_is_said_again(rig, carrier):
    one, token = begun(rig, carrier)
    total = len(request(rig))
    one.sendall(frame(12, FIN))
    assert frame(total + 1, FIN) in receive_exactly(one, len(frame(total + 1, FIN)) * 2)  # after an acknowledgement
    one.sendall(frame(13, END, b"done"))
    wait_until(lambda: len(rig.listener.sessions) == 0)
    two, answer = carrier(Hello(1000, token, 13).encode())
    assert (answer.kind, answer.received) == (KNOWN, total + 1)
    assert two.recv(100) == frame(total + 1, END, b"done")


def test_a_last_word_needs_no_carrier_at_the_far_end(rig, carrier):
    """The near end has both ends of the stream, and its last word is lost with its carrier: it asks no more."""
    one, token = begun(rig, carrier)
    total = len(request(rig))
    one.sendall(frame(12, FIN))
    assert frame(total + 1, FIN) in receive_exactly(one, len(frame(total + 1, FIN)) * 2)
    one.sendall(frame(13, DATA))
    assert receive_exactly(one, len(frame(total + 1, END, b"done"))) == frame(total + 1, END, b"done")
    one.close()
    wait_until(lambda: len(rig.listener.sessions) == BUDGET.offered == 0)
    two, answer = carrier(Hello(1000, token, 13).encode())
    assert (answer.kind, answer.received) == (KNOWN, total + 1)
    assert two.recv(100) == frame(total + 1, END, b"done")


def test_a_reset_without_a_carrier_waits_for_none_at_the_far_end(rig, carrier):
    one, token = begun(rig, carrier)
    one.close()
    wait_until(lambda: not next(iter(rig.listener.sessions._sessions.values())).joint.is_attached)
    rig.tunnel.kill(rig.tunnel.connections()[0].id)
    wait_until(lambda: len(rig.listener.sessions) == BUDGET.offered == 0)
    two, answer = carrier(Hello(1000, token, 12).encode())
    assert (answer.kind, answer.received) == (KNOWN, len(request(rig)))
    assert two.recv(100) == frame(len(request(rig)), END, b"reset")


CERTIFICATE = Certificate("near", (), (), "sha256:abc")


@pytest.mark.parametrize(
    ("identity", "key"),
    [
        (None, None),
        (Identity("tcp", "10.0.0.1", "10.0.0.1", 5), None),
        (Identity("unix", "me", user="1000", process=5), "unix:1000"),
        (Identity("tls", "near", "10.0.0.1", 5, certificate=CERTIFICATE), "tls:sha256:abc"),
        (Identity("i2p", "x.b32.i2p", destination="x.b32.i2p"), "i2p:x.b32.i2p"),
        (Identity("socks", "me", "10.0.0.1", 5, login="me"), None),
        (Identity("ssh", "server", "10.0.0.1", 5, server="ssh://server", is_verified=False), None),
    ],
)
def test_an_identity_tells_who_the_near_end_is_and_not_where_from(identity, key):
    assert key_of(identity) == key
