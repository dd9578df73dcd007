"""``relay.transports.ssh.paramiko.mux``, ``channel`` and ``opening``: channels as kernel sockets, and requests."""

import contextlib
import socket
import struct
import threading
import time
from types import SimpleNamespace

import pytest
from helpers import BLOCK, PROMPT, WAIT, Thread, closed, receive_all, receive_exactly, wait_until
from paramiko_rig import Lost, begin, connect, mux_of, open_stream, settings_for

from relay.addresses.values import TCPAddress, UnixAddress
from relay.errors import CarrierError, ConnectError
from relay.transports.ssh.paramiko import channel as one_channel
from relay.transports.ssh.paramiko import flow_control
from relay.transports.ssh.paramiko import wire as one_wire
from relay.transports.ssh.paramiko.messages import ASK, NOTHING
from relay.transports.ssh.paramiko.mux import Requests

pytestmark = pytest.mark.usefixtures("spawner_thread")


@pytest.fixture
def connection(rig):
    yield from closed(connect(settings_for(rig)))


@pytest.fixture
def pair(connection, listener):
    """Makes streams, each with its far end."""
    with contextlib.ExitStack() as stack:

        def make():
            stream = stack.enter_context(open_stream(connection, listener.getsockname()))
            far = stack.enter_context(listener.accept()[0])
            far.settimeout(WAIT)
            return stream, far

        yield make


def test_what_the_server_says_is_acknowledged_at_once(sshd, serve, monkeypatch):
    """OpenSSH's server leaves Nagle's algorithm on: 44 ms for a stream whose server speaks first, else."""
    server = serve(lambda end: end.sendall(b"220 ready"))
    with contextlib.closing(connect(settings_for(sshd))) as connection:
        wire, acknowledged = mux_of(connection).wire, threading.Event()
        assert wire.is_prompt and wire._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        acknowledge = wire._acknowledge
        monkeypatch.setattr(wire, "_acknowledge", lambda: acknowledged.set() or acknowledge())
        with open_stream(connection, server.address) as stream:
            assert receive_exactly(stream.socket, 9) == b"220 ready"
            assert acknowledged.wait(WAIT)


@pytest.mark.parametrize("is_prompt", [True, False])
def test_behind_another_server_a_message_acknowledges_the_confirmation(scripted, monkeypatch, is_prompt):
    """The system of the server before it delays the acknowledgement, and Nagle's algorithm the target's greeting."""
    server = scripted()
    with contextlib.closing(server.connect()) as connection:
        mux, sent = mux_of(connection), []
        send = mux.send
        monkeypatch.setattr(mux, "send", lambda payload: sent.append(payload) or send(payload))
        mux.wire.is_prompt = is_prompt
        stream, _ = server.open(connection)
        with stream:
            stream.socket.sendall(b"after that")
            server.expect(94)
        assert (NOTHING in sent) is not is_prompt


def test_at_exit_a_closed_stream_is_waited_for_until_the_server_has_closed_it(connection, pair):
    (stream, far), (other, _) = pair(), pair()
    other.socket.sendall(b"of a stream that stays open")
    stream.socket.sendall(b"last words")
    stream.close()
    sent = threading.Event()
    assert connection.when_sent(sent.set)
    assert receive_all(far) == b"last words"
    far.close()
    assert sent.wait(WAIT)
    other.socket.sendall(b"!")


def test_at_exit_a_socket_without_another_owner_counts_as_closed(connection, listener):
    with open_stream(connection, listener.getsockname(), self_contained=True) as stream, listener.accept()[0] as far:
        far.settimeout(WAIT)
        stream.socket.sendall(b"last words")
        sent = threading.Event()
        assert connection.when_sent(sent.set)
        assert receive_all(far) == b"last words"
        far.close()
        assert sent.wait(WAIT)


def test_at_exit_a_stream_without_a_byte_is_not_waited_for(connection, pair):
    stream, _ = pair()
    stream.close()
    sent = threading.Event()
    assert connection.when_sent(sent.set)
    assert sent.wait(WAIT)


@pytest.mark.parametrize("asks", ["when_sent", "drained"])
def test_a_closed_stream_is_waited_for_no_longer_than_its_connection_lasts(scripted, asks):
    """The server has not closed it, and never will."""
    server = scripted()
    with contextlib.closing(server.connect()) as connection:
        stream, _ = server.open(connection)
        stream.socket.sendall(b"last words")
        stream.close()
        for kind in (94, 96, 97):  # the data, the EOF and relay's own CLOSE
            server.expect(kind)
        wait_until(lambda: not mux_of(connection).live)
        over = threading.Event()
        if asks == "when_sent":
            assert connection.when_sent(over.set)
        else:
            stream.drained(over.set)
        server.is_heard()
        assert not over.is_set()
        server.transport.close()
        assert over.wait(WAIT)


def test_a_stream_has_drained_when_the_server_has_closed_it(pair):
    stream, far = pair()
    stream.socket.sendall(b"last words")
    drained = threading.Event()
    stream.drained(drained.set)
    assert receive_all(far) == b"last words"
    far.close()
    assert drained.wait(WAIT)
    again = threading.Event()
    stream.drained(again.set)
    assert again.wait(WAIT)


def test_numbers_are_used_again(connection, listener):
    for _ in range(50):
        stream = open_stream(connection, listener.getsockname())
        listener.accept()[0].close()
        stream.close()
        wait_until(lambda: not len(mux_of(connection)))
    assert mux_of(connection).number(None) < 3


def test_many_streams_have_smaller_first_windows(scripted):
    server = scripted()
    with contextlib.closing(server.connect()) as connection, contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(server.open(connection)[0])
        assert server.windows[0] == flow_control.WINDOW
        assert server.windows[39] == flow_control.first_window(40) < flow_control.WINDOW


# The window of one stream.


FAR = 1e6  # seconds to a server and back


def keep_up(server, stream, number, size):
    """Send a piece only when the one before was taken."""
    for _ in range(size >> 15):
        server.send(94, number, BLOCK[: 1 << 15])
        assert receive_exactly(stream.socket, 1 << 15) == BLOCK[: 1 << 15]


@pytest.mark.parametrize("growth", [None, 100])
def test_the_window_grows_for_a_reader_that_keeps_up(scripted, growth):
    """Up to a limit, and that of all windows of the connection."""
    server = scripted()
    with contextlib.closing(server.connect()) as connection:
        stream, number = server.open(connection)
        mux = mux_of(connection)
        mux.round_trip = FAR
        if growth is not None:
            mux.growth = growth
        whole, sent = mux.growth, 30 << 20
        with stream:
            keep_up(server, stream, number, sent)
            server.is_heard()
            largest = flow_control.LARGEST if growth is None else flow_control.WINDOW + growth
            assert largest * 3 // 4 < server.windows[number] - sent <= largest
            assert mux.growth == whole - (largest - flow_control.WINDOW)
        server.send(97, number)
        wait_until(lambda: mux.growth == whole)


def test_the_window_does_not_grow_for_a_reader_that_lags_behind(scripted):
    server = scripted()
    with contextlib.closing(server.connect()) as connection:
        stream, number = server.open(connection)
        mux_of(connection).round_trip = FAR
        with stream:
            sent = 60 << 15
            for start in range(0, sent, 1 << 15):
                server.send(94, number, (BLOCK * 2)[start : start + (1 << 15)])
            server.is_heard()
            receive_exactly(stream.socket, sent - (600 << 10))
            wait_until(lambda: server.windows[number] > flow_control.WINDOW)
            assert server.windows[number] - sent <= flow_control.WINDOW


@pytest.mark.parametrize(
    ("code", "text", "reason", "told"),
    [
        (2, "Connection refused", "refused", "check that the service"),
        (77, "\x1b[31m\r\nred", "unreachable", r"\x1b[31m red"),
    ],
)
def test_what_a_server_says_becomes_an_error(scripted, code, text, reason, told):
    server = scripted()
    with contextlib.closing(server.connect()) as connection:
        outcome, _ = begin(connection, TCPAddress("db.internal", 5432))
        server.send(92, server.expect_open(), code, text, "en")
        error = outcome.get(timeout=WAIT)
        assert isinstance(error, ConnectError) and error.reason == reason
        assert str(error).startswith("db.internal:5432: ") and told in str(error) and str(error).isprintable()
        assert not len(mux_of(connection))


# What cannot be opened.


def test_giving_up_leaves_nothing(scripted):
    """A late success is closed; a late refusal has no stream."""
    server = scripted()
    with contextlib.closing(server.connect()) as connection:
        for answer in (91, 92):
            outcome, give_up = begin(connection, TCPAddress("db", 1))
            number = server.expect_open()
            give_up()
            give_up()
            idle = threading.Event()
            connection.when_idle(idle.set)
            assert idle.wait(WAIT)
            if answer == 91:
                server.send(91, number, 42, 1000, 1000)
                assert server.expect(97) == struct.pack(">I", 42)
                server.send(97, number)
            else:
                server.send(92, number, 2, "no", "")
            wait_until(lambda: not len(mux_of(connection)))
            assert outcome.empty()


def test_no_descriptors_left(scripted, monkeypatch):
    server = scripted()
    with contextlib.closing(server.connect()) as connection:
        outcome, _ = begin(connection, TCPAddress("db", 1))
        number = server.expect_open()

        def none_left(**_):
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(one_channel.socket, "socketpair", none_left)
            server.send(91, number, 42, 1000, 1000)
            assert isinstance(outcome.get(timeout=WAIT), OSError)
            assert server.expect(97) == struct.pack(">I", 42)
        with server.open(connection)[0]:
            pass


# What goes over the wire.


def test_what_an_open_says(scripted):
    server = scripted()
    with contextlib.closing(server.connect()) as connection:
        begin(connection, TCPAddress("db.internal", 5432))
        content = server.expect(90)
        assert content.startswith(b"\0\0\0\x0cdirect-tcpip")
        assert b"db.internal\0\0\x15\x38\0\0\0\x09127.0.0.1\0\0\0\0" in content
        begin(connection, UnixAddress("/run/db.sock"))
        content = server.expect(90)
        assert b"direct-streamlocal@openssh.com" in content
        assert content.endswith(b"\0\0\0\x0c/run/db.sock\0\0\0\0\0\0\0\0")


def test_data_keep_to_the_servers_window_and_packets(scripted):
    server = scripted()
    with contextlib.closing(server.connect()) as connection:
        stream, number = server.open(connection, window=2500, packet=1000)
        with stream:
            stream.socket.sendall(BLOCK[:4000])
            got = [server.expect(94)[8:] for _ in range(3)]
            assert [len(part) for part in got] == [1000, 1000, 500]
            assert server.received.empty()
            server.send(93, number, 10_000)
            got += [server.expect(94)[8:] for _ in range(2)]
            assert b"".join(got) == BLOCK[:4000]


def test_nothing_follows_a_close(scripted):
    """OpenSSH ends the whole connection for an end of file behind a close."""
    server = scripted()
    with contextlib.closing(server.connect()) as connection:
        for order in ("end, close", "close", "server first", "reset"):
            stream, number = server.open(connection)
            theirs = number + 7
            if order == "end, close":
                stream.socket.shutdown(socket.SHUT_WR)
                assert server.expect(96) == struct.pack(">I", theirs)
                stream.close()
                assert server.expect(97) == struct.pack(">I", theirs)
                server.send(97, number)
            elif order == "close":
                stream.close()
                assert server.expect(96) == struct.pack(">I", theirs)
                assert server.expect(97) == struct.pack(">I", theirs)
                server.send(97, number)
            elif order == "server first":
                server.send(97, number)
                assert server.expect(97) == struct.pack(">I", theirs)
                assert receive_all(stream.socket) == b""
                stream.close()
            else:
                stream.reset()
                assert server.expect(97) == struct.pack(">I", theirs)
                server.send(97, number)
            wait_until(lambda: not len(mux_of(connection)))
        connection.check()
        assert b"keepalive" in server.expect(80)
        assert server.received.empty()


def test_a_close_before_all_was_taken_is_a_clean_end(scripted):
    """A socketpair closed with bytes unread would look like a reset, and what came before would be in doubt."""
    server = scripted()
    with contextlib.closing(server.connect()) as connection:
        stream, number = server.open(connection, window=0)
        with stream:
            stream.socket.sendall(b"in vain")
            server.send(94, number, "the answer")
            server.send(97, number)
            server.expect(97)
            connection.check()
            server.expect(80)  # the loop has turned since
            assert receive_all(stream.socket) == b"the answer"


def test_a_stream_that_the_server_has_closed_ends_with_the_connection_too(scripted):
    """Its number is free, and not all that has come was taken."""
    server, lost = scripted(), Lost()
    with contextlib.closing(server.connect(lost)) as connection:
        stream, number = server.open(connection)
        with stream:
            for _ in range(40):
                server.send(94, number, BLOCK[: 1 << 15])
            server.send(97, number)
            server.expect(97)
            assert mux_of(connection).live
            server.transport.close()
            lost.wait()
            with contextlib.suppress(ConnectionResetError):
                receive_all(stream.socket)
            assert isinstance(stream.failure(), CarrierError)


@pytest.mark.parametrize("server_does", ["nothing", "not take the rest", "not take the rest, and send without end"])
def test_a_closed_stream_is_given_up_after_a_time(scripted, monkeypatch, server_does):
    monkeypatch.setattr(one_channel, "LINGER", 0.1)
    server = scripted()
    with contextlib.closing(server.connect()) as connection:
        stream, number = server.open(connection, window=10)
        if server_does != "nothing":
            stream.socket.sendall(b"x" * 100)
        stream.close()
        idle = threading.Event()
        connection.when_idle(idle.set)
        for _ in range(1000):
            if idle.wait(0.01):
                break
            if server_does.endswith("end"):
                server.send(94, number, "x" * 100)
        assert idle.is_set()
        if server_does != "nothing":
            assert len(server.expect(94)) == 18
            assert server.expect(97) == struct.pack(">I", number + 7)


# Servers that do what they must not.


def survives(server, connection, lost):
    """Return whether the connection still does what it is for, once it has seen all that was sent."""
    server.is_heard()
    stream, number = server.open(connection)
    with stream:
        server.send(94, number, "alive")
        assert receive_exactly(stream.socket, 5) == b"alive"
    assert lost.empty()
    return True


def test_more_than_the_window_allows(scripted, monkeypatch):
    monkeypatch.setattr(one_channel, "BETWEEN", 1 << 12)
    server, lost = scripted(), Lost()
    with contextlib.closing(server.connect(lost)) as connection:
        stream, number = server.open(connection)
        for _ in range(80):
            server.send(94, number, BLOCK[: 1 << 15])
        assert server.expect(97) == struct.pack(">I", number + 7)
        with stream:
            with contextlib.suppress(ConnectionResetError):
                receive_all(stream.socket)
            assert "more than the window allows" in str(stream.failure())
        server.send(94, number, "more")
        server.send(97, number)
        assert survives(server, connection, lost)


def test_messages_for_channels_that_are_none(scripted):
    server, lost = scripted(), Lost()
    with contextlib.closing(server.connect(lost)) as connection:
        for number in (0, 7, 0xFFFFFFFF):
            server.send(91, number, 1, 1, 1)
            server.send(92, number, 1, "no", "")
            server.send(93, number, 1)
            server.send(94, number, "data")
            server.send(95, number, 1, "data")
            for kind in (96, 97, 99, 100):
                server.send(kind, number)
            server.send(98, number, "exit-status", True, 1)
        assert survives(server, connection, lost)


def test_data_after_the_end_and_after_the_close(scripted):
    server, lost = scripted(), Lost()
    with contextlib.closing(server.connect(lost)) as connection:
        stream, number = server.open(connection)
        with stream:
            server.send(94, number, "one")
            server.send(96, number)
            server.send(94, number, "two")
            server.send(96, number)
            assert receive_all(stream.socket) == b"one"
            server.send(97, number)
            server.expect(97)
            for kind in (94, 96, 97):
                server.send(kind, number, *(["late"] if kind == 94 else []))
        assert survives(server, connection, lost)


def test_requests_and_standard_error_on_a_channel(scripted):
    server, lost = scripted(), Lost()
    with contextlib.closing(server.connect(lost)) as connection:
        stream, number = server.open(connection)
        with stream:
            server.send(98, number, "exit-status", False, 1)
            server.send(98, number, "what", True)
            assert server.expect(100) == struct.pack(">I", number + 7)
            for _ in range(200):
                server.send(95, number, 1, "e" * 30_000)
            server.send(94, number, "data")
            assert receive_exactly(stream.socket, 4) == b"data"
        assert server.expect(96)
        assert server.expect(97)
        server.send(97, number)
        assert survives(server, connection, lost)


def test_small_packets_take_no_more_memory_than_they_hold(scripted):
    server = scripted()
    with contextlib.closing(server.connect()) as connection:
        stream, number = server.open(connection)
        with stream:
            for _ in range(20_000):
                server.send(94, number, "x" * 30)
            server.is_heard()
            assert receive_exactly(stream.socket, 600_000) == b"x" * 600_000


@pytest.mark.parametrize("kind", [80, 91, 92, 93, 94, 95, 96, 97, 98, "data longer than their message"])
def test_messages_that_are_cut_short_end_the_connection_and_no_thread(scripted, kind):
    server, lost = scripted(), Lost()
    with contextlib.closing(server.connect(lost)) as connection:
        stream, number = server.open(connection)
        cut = bytes([kind]) + struct.pack(">I", number)[:3] if isinstance(kind, int) else b""
        server.transport._send_message(_raw(cut or struct.pack(">BII", 94, number, 1000) + b"short"))
        assert isinstance(lost.wait(), CarrierError)
        with stream:
            assert isinstance(stream.failure(), CarrierError)


def _raw(content):
    import paramiko

    return paramiko.Message(content)


def test_a_flood_of_questions_whose_answers_nobody_takes(scripted, monkeypatch):
    """It is read no further than its answers fit into bounded memory."""
    monkeypatch.setattr(one_wire, "_MOST", 64 << 10)  # small answers take long to fill the 4 MiB of a relay
    server, lost = scripted(), Lost()
    with contextlib.closing(server.connect(lost)) as connection:
        wire = connection._wire
        wire._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        server.transport.sock.settimeout(WAIT)
        stop = threading.Event()
        server.transport.packetizer.read_message = lambda: stop.wait() and None
        question = _raw(b"P" + struct.pack(">I", 4) + b"what" + b"\1")
        asking = Thread(lambda: _ask(server, question, stop))
        wait_until(lambda: not wire._mask & 1)
        assert wire.unsent < 2 << 20
        begun = time.monotonic()
        connection.close()
        assert time.monotonic() - begun < PROMPT
        stop.set()
        asking.result()


def _ask(server, question, stop):
    with contextlib.suppress(Exception):
        while not stop.is_set():
            server.transport._send_message(question)


# Requests of the server.


IGNORED = struct.pack(">BI", 2, 0)  # SSH_MSG_IGNORE; RFC 4253, section 11.2


@pytest.fixture
def sent():
    return []


@pytest.fixture
def asking(sent):
    """Says what a server asks for: ``asking(is_prompt)(name, wants_answer)``."""

    def make(is_prompt):
        handlers = {}
        transport = SimpleNamespace(handle=handlers.__setitem__, wire=SimpleNamespace(is_prompt=is_prompt))
        Requests(transport, SimpleNamespace(send=sent.append, ended=None))

        def ask(name, wants_answer):
            handlers[ASK](memoryview(struct.pack(">I", len(name)) + name + bytes([wants_answer])))

        return ask

    return make


def test_behind_another_server_the_first_word_is_acknowledged_by_one_of_ours(asking, sent):
    """Else the answer to the first channel comes 40 ms late."""
    ask = asking(False)
    ask(b"hostkeys-00@openssh.com", False)
    assert sent == [IGNORED]
    ask(b"hostkeys-00@openssh.com", False)  # a server that says it without end gets nothing more
    assert sent == [IGNORED]


def test_a_request_after_the_end_is_not_sent(sent):
    requests = Requests(
        SimpleNamespace(handle=lambda *_: None, wire=SimpleNamespace(is_prompt=True)),
        SimpleNamespace(send=sent.append, ended=CarrierError("lost")),
    )
    told = []
    requests.ask("keepalive@openssh.com", b"", told.append)
    assert (told, sent, len(requests)) == ([None], [], 0)
