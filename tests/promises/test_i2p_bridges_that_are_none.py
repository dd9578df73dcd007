"""Anything may listen at the bridge's address: a clear error in one line, bounded memory, and no hang."""

import itertools
import socket
import time

import pytest
from helpers import PROMPT, WAIT, ended, fate_of_client, makes, wait_until
from i2p_world import SHORT, read_line
from sam_rig import ScriptedBridge

import relay
from relay.addresses.destinations import PrivateKey

TIMEOUT = 0.3  # seconds that are left to a bridge to say HELLO, or to make a session, instead of 8 and 600
MUCH = 64 << 20  # bytes that are more than anybody may swallow
SWALLOWED = 16 << 20  # bytes that the kernel's buffers may take, and more than that
KEY = PrivateKey.generate()
DEST = PrivateKey.generate().destination
HELLO = b"HELLO REPLY RESULT=OK VERSION=3.1\n"
MADE = f"SESSION STATUS RESULT=OK DESTINATION={KEY.base64}\n".encode()


class Flood:
    """Sends the same again and again, and remembers how much of it was taken."""

    def __init__(self, piece):
        self.piece = piece * (1 + (1 << 16) // len(piece))
        self.sent = 0

    def __call__(self, connection):
        while self.sent < MUCH:
            self.sent += connection.send(self.piece)

    @property
    def __name__(self):
        return f"flood of {self.piece[:8]!r}"


def after(*steps):
    """Answers one line with each of these, and goes on."""

    def serve(connection):
        for step in steps:
            read_line(connection)
            if callable(step):
                step(connection)
            else:
                connection.sendall(step)
        while connection.recv(1 << 16):
            pass

    return serve


def end(connection):
    """Ends without a word."""


def reads_on(connection):
    """Says nothing."""
    while connection.recv(1 << 16):
        pass


FIRST_WORDS = {
    "an HTTP port": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "an SSH port": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a database": bytes.fromhex("4a0000000a352e372e3432") + bytes(60),
    "no text": b"\xff\xfe\xfd\n",
    "an empty line": b"\n",
    "the answer to something else": b"SESSION STATUS RESULT=OK DESTINATION=AAAA\n",
    "no version": b"HELLO REPLY RESULT=NOVERSION\n",
    "no result": b"HELLO REPLY\n",
    "an unknown result": b'HELLO REPLY RESULT="' + b"no " * 1000 + b'"\n',
    "quotes that do not end": b'HELLO REPLY RESULT="OK\n',
    "half a line": b"HELLO REPLY RES",
    "an end": end,
    "silence": reads_on,
    "a line without end": Flood(b"HELLO REPLY "),
    "zeros": Flood(bytes(1)),
    "empty lines": Flood(b"\n"),
    "a flood of what would be right": Flood(HELLO),
}

SECOND_WORDS = {
    "the answer to something else": b"STREAM STATUS RESULT=OK\n",
    "the same again": HELLO,
    "no destination": b"SESSION STATUS RESULT=OK\n",
    "a destination that is none": b"SESSION STATUS RESULT=OK DESTINATION=hello\n",
    "a private key that is damaged": MADE.replace(KEY.base64.encode()[400:], b"!" * 100),
    "a refusal": b'SESSION STATUS RESULT=I2P_ERROR MESSAGE="' + b'\\"no\\" ' * 500 + b'"\n',
    "no text": b"\xff\xfe\xfd\n",
    "half a line": b"SESSION STATUS RES",
    "an end": end,
    "a line without end": Flood(b"SESSION STATUS "),
    "zeros": Flood(bytes(1)),
    "silence": reads_on,
}


@pytest.fixture(autouse=True)
def impatient(times):
    """Short times; how long they are has its own tests."""
    times(hello=TIMEOUT, attempt=TIMEOUT)


def server(sam):
    return relay.TunnelServer("", 9, sam, **SHORT)


def client(sam):
    return relay.TunnelClient("", 0, DEST, sam, **SHORT)


def check(make, words, handler, serve):
    """It raises in time, in one line, and has not swallowed much."""
    address = serve(handler).address
    begin = time.monotonic()
    with pytest.raises(relay.RelayError) as failed:
        make("{}:{}".format(*address))
    assert time.monotonic() - begin < PROMPT
    text = str(failed.value)
    assert text.isprintable() and len(text) < 500
    assert "{}:{}".format(*address) in text
    if isinstance(words, Flood):
        assert words.sent < SWALLOWED


@pytest.mark.parametrize("what", FIRST_WORDS)
@pytest.mark.parametrize("make", [server, client])
def test_instead_of_hello(make, what, serve):
    words = FIRST_WORDS[what]
    handler = after(words) if not isinstance(words, bytes) else after(words, end)
    check(make, words, handler, serve)


@pytest.mark.parametrize("what", SECOND_WORDS)
@pytest.mark.parametrize("make", [server, client])
def test_instead_of_a_session(make, what, serve):
    words = SECOND_WORDS[what]
    ending = (end,) if isinstance(words, bytes) and not words.endswith(b"\n") else ()
    check(make, words, after(HELLO, words, *ending), serve)


@pytest.mark.parametrize("make", [server, client])
def test_one_that_speaks_first(make, serve):
    def greet(connection):
        connection.sendall(b"220 mail.example ESMTP ready to serve you\r\n")
        reads_on(connection)

    check(make, b"", greet, serve)


@pytest.mark.parametrize("make", [server, client])
def test_two_answers_at_once(make, serve):
    """An answer without a question is no answer to the next question."""
    check(make, b"", after(HELLO + HELLO), serve)


def test_the_text_says_what_to_do(serve):
    with pytest.raises(relay.SAMError, match="not a SAM bridge.*7656"):
        client("{}:{}".format(*serve(after(b"HTTP/1.1 400 Bad Request\r\n")).address))


class Bridge(ScriptedBridge):
    """One that is right up to the streams, whose words the test chooses.

    :param words: the answers to STREAM CONNECT, ACCEPT, FORWARD or NAMING LOOKUP; the last one serves for all others.
    """

    def __init__(self, command, words):
        super().__init__()
        self._command = command
        self._words = itertools.chain(words, itertools.repeat(words[-1]))

    def answer_to(self, line):
        if not line.startswith(self._command):
            return super().answer_to(line)
        words = next(self._words)
        if callable(words):
            return lambda there: words(there.socket)
        return lambda there: (there.socket.sendall(words), reads_on(there.socket))


@pytest.fixture
def scripted(times):
    # these answer
    times(hello=WAIT, attempt=WAIT)
    yield from makes(lambda command, *words: Bridge(command, words))


STREAM_WORDS = {
    "the answer to something else": b"NAMING REPLY RESULT=OK NAME=x VALUE=y\n",
    "no text": b"\xff\xfe\xfd\n",
    "an unknown result": b'STREAM STATUS RESULT=NONSENSE MESSAGE="x y"\n',
    "no result": b"STREAM STATUS\n",
    "an end": end,
    "a line without end": Flood(b"STREAM STATUS "),
    "silence": reads_on,
}


@pytest.mark.parametrize("what", STREAM_WORDS)
def test_instead_of_a_stream(what, scripted):
    words = STREAM_WORDS[what]
    bridge = scripted("STREAM CONNECT", words)
    with relay.TunnelClient("", 0, DEST, bridge.name, connect_timeout=1.0, **SHORT) as tunnel:
        begin = time.monotonic()
        assert fate_of_client(tunnel.address, b"hello") == "reset"
        assert time.monotonic() - begin < PROMPT
        assert ended(tunnel)[0] in ("unreachable", "connect_timeout")
        assert tunnel.state == "up"
    if isinstance(words, Flood):
        assert words.sent < SWALLOWED


@pytest.mark.parametrize(
    "value", [b"VALUE=hello", b"VALUE=" + b"A" * 7000, b"", b"VALUE=x.b32.i2p", b'VALUE="a b"', b"VALUE=\xff"]
)
def test_instead_of_a_destination(value, scripted):
    bridge = scripted("NAMING", b"NAMING REPLY RESULT=OK NAME=site.i2p " + value + b"\n")
    with relay.TunnelClient("", 0, "site.i2p", bridge.name, **SHORT) as tunnel:
        with pytest.raises(relay.RelayError, match="site.i2p|UTF-8"):
            tunnel.remotedest  # noqa: B018


@pytest.mark.parametrize(
    "words", [b"x" * 9000, b"\xff\xfe\n", Flood(b"SESSION STATUS ")], ids=["long", "bytes", "flood"]
)
def test_nonsense_on_the_control_socket_ends_the_session_and_a_new_one_is_made(words, scripted, times):
    times(back_off=(0.01, 0.05))
    bridge = scripted("nothing", b"")
    with relay.TunnelClient("", 0, DEST, bridge.name, **SHORT) as tunnel:
        states = []
        tunnel._sender.subscribe(lambda state, _: states.append(state.value))
        control = bridge.controls[0].socket
        try:
            words(control) if callable(words) else control.sendall(words)
        except OSError:  # it is closed, perhaps on both sides
            pass
        wait_until(lambda: len(bridge.controls) > 1 and tunnel.state == "up")
        assert "backing off" in states
    if isinstance(words, Flood):
        assert words.sent < SWALLOWED


ACCEPT_WORDS = {
    "no destination": b"STREAM STATUS RESULT=OK\nhello\n",
    "no text": b"STREAM STATUS RESULT=OK\n\xff\xfe\n",
    "an error after all": b"STREAM STATUS RESULT=OK\nSTREAM STATUS RESULT=I2P_ERROR\n",
    "a refusal": b"STREAM STATUS RESULT=ALREADY_ACCEPTING\n",
    "a line that is too long": b"STREAM STATUS RESULT=OK\n" + b"A" * 9000,
    "an end": end,
    "a line without end": Flood(b"STREAM STATUS "),
}


@pytest.mark.parametrize("what", ACCEPT_WORDS)
def test_instead_of_who_connects(what, scripted, echo_server, times):
    """The next one is served."""
    times(accept_again=(0.01, 0.05))
    words = ACCEPT_WORDS[what]

    def somebody(connection):
        connection.sendall(b"STREAM STATUS RESULT=OK\n" + DEST.encode() + b"\nhello")
        answers.append(connection.recv(100))
        connection.shutdown(socket.SHUT_WR)  # not before: there is no half-close, and the answer would be dropped
        reads_on(connection)

    answers = []
    bridge = scripted("STREAM ACCEPT", words, words, somebody, reads_on)
    with relay.TunnelServer("", echo_server.address[1], bridge.name, accept="accept", **SHORT) as tunnel:
        wait_until(lambda: answers == [b"hello"], 2 * WAIT)
        assert [record.peer for record in tunnel.recent() + tunnel.connections()] == [DEST]
    if isinstance(words, Flood):
        assert words.sent < SWALLOWED
