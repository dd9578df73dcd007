"""``relay.transports.ssh.paramiko.sessions``: commands, with a server that says what the test wants."""

import contextlib
import struct
import threading

import pytest
from helpers import WAIT, closed, receive_all, receive_exactly, receive_until_reset
from paramiko_rig import ScriptedServer, begin

from relay.addresses.hops import Command
from relay.errors import CarrierError, ConnectError
from relay.transports.ssh.paramiko import sessions

OPEN_CONFIRMED, ADJUST, DATA, EXTENDED, END, CLOSE, REQUEST, GRANTED, REFUSED = 91, 93, 94, 95, 96, 97, 98, 99, 100


class Rig:
    """A connection to a scripted server."""

    def __init__(self):
        self.server = ScriptedServer()
        self.connection = self.server.connect()

    def ask(self, text="sh -c 'it'", seconds=WAIT):
        """Ask for a command, and open the channel: its number, where the outcome comes, how to give up."""
        told, give_up = begin(self.connection, Command(text), seconds)
        number = self.server.expect_open()
        self.server.send(OPEN_CONFIRMED, number, number + 7, 1 << 20, 32768)
        return number, told, give_up

    def open(self, text="sh -c 'it'"):
        number, told, _ = self.ask(text)
        self.server.expect(REQUEST)
        self.server.send(GRANTED, number)
        stream = told.get(timeout=WAIT)
        stream.socket.settimeout(WAIT)
        return stream, number

    def close(self):
        self.connection.close()
        self.server.close()


@pytest.fixture
def rig(spawner_thread):
    yield from closed(Rig())


def parsed(content):
    """The channel, the kind, whether an answer is requested and the rest of a request."""
    number, length = struct.unpack_from(">II", content)
    end = 8 + length
    return number, content[8:end], bool(content[end]), content[end + 1 :]


def test_a_session_is_asked_for_and_then_the_command(rig):
    told, _ = begin(rig.connection, Command("""printf '%%s' "a b" '$HOME' ';'"""))
    content = rig.server.expect(90)
    assert content[4:11] == b"session"
    number = struct.unpack_from(">I", content, 11)[0]
    rig.server.send(OPEN_CONFIRMED, number, number + 7, 1 << 20, 32768)
    command = b"""printf %s 'a b' '$HOME' ';'"""
    assert parsed(rig.server.expect(REQUEST)) == (number + 7, b"exec", True, struct.pack(">I", len(command)) + command)
    assert told.empty()
    rig.server.send(GRANTED, number)
    told.get(timeout=WAIT).close()


def test_a_request_that_is_refused_is_a_denial(rig):
    number, told, _ = rig.ask()
    rig.server.expect(REQUEST)
    rig.server.send(REFUSED, number)
    error = told.get(timeout=WAIT)
    assert isinstance(error, ConnectError) and error.reason == "denied"
    assert str(error).startswith("exec:sh …: denied by ssh://user@")
    while rig.server.received.get(timeout=WAIT)[0] != CLOSE:
        pass


def test_a_channel_that_is_closed_at_once_is_a_denial(rig):
    number, told, _ = rig.ask()
    rig.server.send(CLOSE, number)
    error = told.get(timeout=WAIT)
    assert error.reason == "denied" and "before it ran the command" in str(error)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 77])
def test_a_session_that_is_refused_is_a_denial(rig, code):
    told, _ = begin(rig.connection, Command("cat"))
    rig.server.send(92, rig.server.expect_open(), code, "not here", "en")
    error = told.get(timeout=WAIT)
    assert error.reason == "denied" and "(not here)" in str(error) and "MaxSessions" in str(error)


def test_bytes_before_the_answer_are_kept(rig):
    number, told, _ = rig.ask()
    rig.server.expect(REQUEST)
    rig.server.send(DATA, number, b"early")
    rig.server.send(GRANTED, number)
    with told.get(timeout=WAIT) as stream:
        stream.socket.settimeout(WAIT)
        assert receive_exactly(stream.socket, 5) == b"early"


def ends(rig, end, *requests):
    """Return what an end of the command with these requests is."""
    stream, number = rig.open()
    with stream:
        rig.server.send(DATA, number, b"output")
        for kind, *rest in requests:
            rig.server.send(REQUEST, number, kind, False, *rest)
        rig.server.send(END, number)
        rig.server.send(CLOSE, number)
        with contextlib.nullcontext() if end is None else pytest.raises(ConnectionResetError):
            assert receive_exactly(stream.socket, 6) == b"output"
            assert stream.socket.recv(1) == b""
        return stream.failure() and str(stream.failure())


@pytest.mark.parametrize(
    ("requests", "end"),
    [
        ([("exit-status", 0)], None),
        ([("exit-status", 1)], "ended with status 1"),
        ([("exit-status", 0xFFFFFFFF)], "ended with status 4294967295"),
        ([("exit-status", 0), ("exit-status", 1)], None),
        ([("exit-status", 3), ("exit-status", 0)], "ended with status 3"),
        ([("exit-signal", "KILL", False, "", "")], "was ended by SIGKILL"),
        ([("exit-signal", "\x1b[31m\nX" + "y" * 1000, True, "x", "")], "was ended by SIG\\x1b[31m X" + "y" * 193 + "…"),
        ([], "ended without a status"),
        ([("keepalive@openssh.com",)], "ended without a status"),
    ],
    ids=["0", "1", "large", "0 and 1", "3 and 0", "signal", "odd signal", "nothing", "something else"],
)
def test_how_it_has_ended(rig, requests, end):
    assert ends(rig, end, *requests) == (end and f"exec:sh …: {end}")


def test_the_end_of_its_output_waits_for_the_status(rig):
    stream, number = rig.open()
    with stream:
        rig.server.send(END, number)
        stream.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            stream.socket.recv(1)
        stream.socket.settimeout(WAIT)
        rig.server.send(EXTENDED, number, 1, "late words\n")
        rig.server.send(REQUEST, number, "exit-status", False, 5)
        assert receive_until_reset(stream.socket) == b""
        assert str(stream.failure()) == "exec:sh …: ended with status 5 (late words)"


def test_a_command_that_goes_on_without_an_output(rig, monkeypatch):
    monkeypatch.setattr(sessions, "_SETTLE", 0.05)
    stream, number = rig.open()
    with stream:
        rig.server.send(END, number)
        assert receive_all(stream.socket) == b""
        assert stream.failure() is None
        stream.socket.sendall(b"more")
        assert rig.server.expect(DATA)[-4:] == b"more"


def test_a_status_that_is_cut_short_ends_the_connection(rig):
    stream, number = rig.open()
    with stream:
        rig.server.send(REQUEST, number, "exit-status", False)
        with contextlib.suppress(ConnectionResetError):
            receive_all(stream.socket)
        assert isinstance(stream.failure(), CarrierError)


def test_answers_that_nobody_has_asked_for_are_ignored(rig):
    plain, first = rig.server.open(rig.connection)
    stream, number = rig.open()
    with plain, stream:
        for kind in GRANTED, REFUSED:
            for one in first, number, 4711:
                rig.server.send(kind, one)
        rig.server.send(DATA, number, b"still there")
        assert receive_exactly(stream.socket, 11) == b"still there"
        rig.server.send(DATA, first, b"still there")
        assert receive_exactly(plain.socket, 11) == b"still there"


def test_data_of_an_unknown_kind_are_dropped(rig, caplog):
    caplog.set_level("INFO", "relay")
    stream, number = rig.open()
    with stream:
        rig.server.send(EXTENDED, number, 2, "what is that?\n")
        rig.server.send(EXTENDED, number, 1, "words\n")
        rig.server.send(DATA, number, b"data")
        assert receive_exactly(stream.socket, 4) == b"data"
    assert [one.getMessage() for one in caplog.records if "exec" in one.getMessage()] == ["exec:sh …: words"]


def test_giving_up_closes_the_channel_and_ends_the_command(rig):
    number, told, give_up = rig.ask()
    rig.server.expect(REQUEST)
    give_up()
    assert parsed(rig.server.expect(REQUEST))[1:3] == (b"signal", False)
    rig.server.expect(CLOSE)
    rig.server.send(GRANTED, number)
    rig.server.send(CLOSE, number)
    idle = threading.Event()
    rig.connection.when_idle(idle.set)
    assert idle.wait(WAIT)
    assert told.empty()


def test_a_deadline_before_the_answer(rig):
    number, told, _ = rig.ask(seconds=0.1)
    error = told.get(timeout=WAIT)
    assert error.reason == "connect_timeout" and "has not started it in time" in str(error)
    rig.server.expect(REQUEST)
    rig.server.expect(REQUEST)
    rig.server.expect(CLOSE)
    rig.server.send(GRANTED, number)


def test_a_reset_sends_a_signal_and_a_close_does_not(rig):
    stream, number = rig.open()
    stream.reset()
    assert parsed(rig.server.expect(REQUEST))[:3] == (number + 7, b"signal", False)
    rig.server.expect(CLOSE)
    stream, number = rig.open()
    stream.close()
    rig.server.expect(END)
    rig.server.expect(CLOSE)


def test_a_reset_after_its_end_sends_nothing_more(rig):
    stream, number = rig.open()
    rig.server.send(REQUEST, number, "exit-status", False, 0)
    rig.server.send(END, number)
    assert receive_all(stream.socket) == b""
    stream.reset()
    rig.server.expect(CLOSE)
    rig.server.send(CLOSE, number)
    idle = threading.Event()
    rig.connection.when_idle(idle.set)
    assert idle.wait(WAIT)
